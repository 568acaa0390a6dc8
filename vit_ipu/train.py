"""Training as a story: open the data, build the backend, restore, then step, evaluate and save until the end."""

from __future__ import annotations

import hashlib
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Optional, Set

from rich.console import Console

from vit_ipu.backends import Backend, Device, StepResult, open_backend
from vit_ipu.cli.progress import Interrupted, StopSignal, TrainingDisplay
from vit_ipu.config import Config, RunFailed
from vit_ipu.data.loading.loader import EvaluationLoader, TrainingLoader
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import DataError, Source, open_source
from vit_ipu.evaluate import Evaluation, evaluate
from vit_ipu.optim import learning_rate
from vit_ipu.pipeline import BatchPlan
from vit_ipu.runs.checkpoint import (
    CheckpointError,
    Description,
    Progress,
    load_resumable,
    remove_old_checkpoints,
    save_checkpoint,
)
from vit_ipu.runs.environment import environment
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import Metrics, read_metrics
from vit_ipu.weights.fit import load_init

NUM_EXAMPLES = 10
"""Held-out images that a run folder keeps as files, to try predictions on."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    progress: Progress
    total_updates: int
    evaluation: Optional[Evaluation]
    """That of the last update, if it was done."""
    seconds: float
    """Wall time of training, evaluations included, in this process."""
    checkpoint: Optional[Path]
    """The newest there is."""

    @property
    def interrupted(self) -> bool:
        return self.progress.update < self.total_updates or self.evaluation is None


def train(
    config: Config,
    device: Device,
    folder: RunFolder,
    console: Console,
    *,
    resume: bool = False,
    trust_pickle: bool = False,
    cache: Optional[ListingCache] = None,
) -> Summary:
    """Trains to the end of the config, or until interrupted; the run folder then holds all there is to know."""
    train_source, eval_source = (
        open_source(config.data, config.model, split, cache=cache) for split in ("train", "eval")
    )
    total_updates = config.total_updates(len(train_source))
    labels_sha256 = hashlib.sha256(train_source.labels.tobytes()).hexdigest()
    description = Description(config, eval_source.classes, len(train_source), labels_sha256)
    started = time.monotonic()
    with open_backend(config, device) as backend:
        newest = folder.newest_checkpoint() if resume else None
        if newest is not None:
            progress = restore(backend, description, newest, device)
        else:
            progress = start(backend, config, console, trust_pickle=trust_pickle)
        if progress.update < total_updates:
            backend.compile()
        if backend.instances.index == 0:
            folder.begin(environment(config, device))
        recorder = Recorder(config, folder, backend, progress, total_updates, console)
        with recorder, StopSignal(recorder.say) as stop:
            if resume:
                recorder.say(f"going on at update {progress.update:,}")
            loader = training_loader(train_source, config, backend, progress, total_updates)
            for batch in stop.until_asked(loader):
                recorder.skipped(loader.skipped)
                rate = learning_rate(progress.update, total_updates, config.optim)
                result = backend.train_step(batch, rate)
                progress = advance(progress, config)
                recorder.step(progress, result, rate)
                if due(config.run.checkpoint_every, progress):
                    recorder.checkpoint(progress, description, device)
                if due(config.run.evaluate_every, progress) and progress.update < total_updates:
                    recorder.evaluate(progress, eval_source, stop)
            recorder.checkpoint(progress, description, device)  # before the evaluation, which may fail
            if progress.update == total_updates:
                recorder.evaluate(progress, eval_source, stop)
        if recorder.writes:
            save_examples(eval_source, folder.examples)
        evaluation = recorder.evaluation_at(total_updates, len(eval_source))
    seconds = time.monotonic() - started
    return Summary(progress, total_updates, evaluation, seconds, folder.newest_checkpoint())


def restore(backend: Backend, description: Description, newest: Path, device: Device) -> Progress:
    """Loads the newest checkpoint of a resumed run."""
    state, progress = load_resumable(newest, description, device_kind=device.kind)
    try:
        backend.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError):
        raise CheckpointError(f"{newest} does not fit this run: remove it to go on from the one before") from None
    return progress


def start(backend: Backend, config: Config, console: Console, *, trust_pickle: bool) -> Progress:
    """Loads model.init, or leaves the fresh weights."""
    if config.model.init is not None:
        quiet = backend.instances.index > 0
        own = backend.state_dict()["model"]
        say = console.print if not quiet else lambda text: None
        backend.load_state_dict({"model": load_init(config, own, trust_pickle=trust_pickle, say=say)})
    return Progress()


def training_loader(
    source: Source, config: Config, backend: Backend, progress: Progress, total_updates: int
) -> TrainingLoader:
    """The host steps that are left, as far as this process feeds them."""
    return TrainingLoader(
        source,
        config,
        BatchPlan.of(config).share(backend.instances.index, backend.instances.count),
        start_step=progress.host_step,
        total_steps=total_updates // config.pipeline.device_iterations,
    )


def advance(progress: Progress, config: Config) -> Progress:
    """How far the run is after another host step."""
    iterations = config.pipeline.device_iterations
    samples = config.pipeline.global_batch_size * iterations
    return Progress(progress.update + iterations, progress.host_step + 1, progress.samples + samples)


def due(every: Optional[int], progress: Progress) -> bool:
    """Whether something that happens `every` so many updates happens now."""
    return every is not None and progress.update % every == 0


def save_examples(source: Source, folder: Path) -> None:
    """Writes the first held-out images that can be read as PNG files named after their classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(min(NUM_EXAMPLES, len(source))):
        name = source.classes[int(source.labels[index])].lower()
        file_name = "".join(letter if letter.isalnum() else "-" for letter in name)
        with suppress(DataError):  # the evaluation has named it
            source.image(index).save(str(folder / f"{index:02d}_{file_name}.png"))


class Recorder:
    """Writes metrics and checkpoints and shows progress; of several host processes, only the first does."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        backend: Backend,
        progress: Progress,
        total_updates: int,
        console: Console,
    ) -> None:
        self._config, self._folder, self._backend = config, folder, backend
        self.writes = backend.instances.index == 0
        self._metrics = Metrics(folder, config, resumed_at=progress.update) if self.writes else None
        # Processes that write nothing know of earlier evaluations too: all must evaluate together.
        self._lines = self._metrics.lines if self._metrics is not None else read_metrics(folder.metrics)
        self._display = TrainingDisplay(console, total_updates, done=progress.update, quiet=not self.writes)
        self._saved_update = progress.update
        self._skipped: Set[str] = set()
        self._last_time = time.monotonic()

    def __enter__(self) -> Recorder:
        self._display.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._display.stop()
        if self._metrics is not None:
            self._metrics.close()

    def say(self, text: str) -> None:
        self._display.say(text)

    def step(self, progress: Progress, result: StepResult, rate: float) -> None:
        """A host step has ended. Raises RunFailed if its loss is no number."""
        if not math.isfinite(result.loss):
            raise RunFailed(
                "the loss is {} at update {}: lower optim.learning_rate or precision.loss_scale; the last checkpoint "
                "is {}".format(result.loss, progress.update, self._folder.newest_checkpoint() or "none")
            )
        num_images = result.num_samples * self._backend.instances.count
        speed = num_images / self._seconds_since_last()
        self._display.step(progress.update, loss=result.loss, learning_rate=rate, images_per_second=speed)
        if progress.host_step % self._config.run.log_every == 0:
            self._write(progress, loss=result.loss, learning_rate=rate, images_per_second=round(speed, 2))

    def skipped(self, images: Iterable[str]) -> None:
        """Names images that could not be read, each once."""
        for image in images:
            if image not in self._skipped:
                self._skipped.add(image)
                self.say(f"skipped, {len(self._skipped):,} so far: {image}")

    def evaluate(self, progress: Progress, source: Source, stop: StopSignal) -> None:
        """Evaluates on all images of the source, unless it was done at this update; nothing is noted if interrupted."""
        if self.evaluation_at(progress.update, len(source)) is not None:
            return
        loader = EvaluationLoader(source, self._config)
        try:
            found = evaluate(self._backend, stop.unless_asked(loader))
        except Interrupted:
            return
        self.skipped(loader.skipped)
        fewer = {"evaluation_images": found.num_images} if found.num_images < len(source) else {}
        self._write(progress, top1=found.top1, top5=found.top5, evaluation_loss=found.loss, **fewer)
        self.say(
            f"update {progress.update}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, loss {found.loss:.4f} on "
            f"{found.num_images:,} held-out images"
        )
        self._seconds_since_last()

    def evaluation_at(self, update: int, num_images: int) -> Optional[Evaluation]:
        """What was found at an update, in this process or before."""
        for line in self._lines:
            if line["update"] == update and "top1" in line:
                counted = line.get("evaluation_images", num_images)
                return Evaluation(line["top1"], line["top5"], line["evaluation_loss"], counted)
        return None

    def checkpoint(self, progress: Progress, description: Description, device: Device) -> None:
        """Writes a checkpoint, unless nothing was learnt since the last, and removes the oldest ones."""
        if progress.update in (0, self._saved_update):
            return
        self._saved_update = progress.update
        state = self._backend.state_dict()
        if self.writes:
            save_checkpoint(self._folder.checkpoints, state, progress, description, device_kind=device.kind)
            remove_old_checkpoints(self._folder.checkpoints, self._config.run.keep_checkpoints)
        self._seconds_since_last()

    def _seconds_since_last(self) -> float:
        """Time since the last host step, evaluation or checkpoint ended."""
        last, self._last_time = self._last_time, time.monotonic()
        return max(self._last_time - last, 1e-9)

    def _write(self, progress: Progress, **values: float) -> None:
        if self._metrics is not None:
            counts = {"update": progress.update, "host_step": progress.host_step, "samples": progress.samples}
            if self._skipped:
                counts["skipped"] = len(self._skipped)
            self._metrics.write(dict(counts, **values))

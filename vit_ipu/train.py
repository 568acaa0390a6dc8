"""Training: opens the data, builds the backend, restores, then steps, evaluates and saves until the end."""

from __future__ import annotations

import hashlib
import io
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Set, Tuple

import torch

from vit_ipu.averaging import share_of_start
from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Backend, Device, HostBatch, Instances, StepResult
from vit_ipu.class_balance import class_weights
from vit_ipu.config import Config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.base import Source
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import CheckpointError, DataError, Interrupted, RunFailed, UserError
from vit_ipu.evaluate import Evaluation, evaluate_batches, evaluation_loader
from vit_ipu.files import remove, write_whole
from vit_ipu.losses import loss_of_guess
from vit_ipu.optim import learning_rate
from vit_ipu.pipeline import BatchPlan
from vit_ipu.runs.background import BackgroundWriter
from vit_ipu.runs.best import BestCheckpoint
from vit_ipu.runs.checkpoint import (
    Progress,
    load_resumable,
    remove_old_checkpoints,
    save_checkpoint,
    set_aside_later_checkpoints,
)
from vit_ipu.runs.display import NO_DISPLAY, TrainingDisplay
from vit_ipu.runs.divergence import problem_of_loss, problem_of_state, record_divergence, set_aside_exploded
from vit_ipu.runs.early_stopping import stops_early
from vit_ipu.runs.environment import environment
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import NUM_MISTAKES, write_last_evaluation
from vit_ipu.runs.metrics import Metrics, evaluations_until, overflows_until, require_tracking
from vit_ipu.runs.removal import set_run_aside
from vit_ipu.signals import StopSignal
from vit_ipu.text import Notify, counted, reason_of, shortened, single_line
from vit_ipu.weights.fit import load_initial_weights
from vit_ipu.weights.native import ModelDescription, checkpoints_in, first_whole

NUM_EXAMPLES = 10
"""Number of held-out images that a run folder keeps as files, to try predictions on."""
_LONGEST_CLASS = 40
"""Characters of a class name in a file name, which may have 255 bytes, 4 for a character."""


@dataclass(frozen=True)
class Summary:
    """Result of a run."""

    progress: Progress
    total_updates: int
    evaluation: Optional[Evaluation]
    """Evaluation at the last update; None if there was none."""
    seconds: float
    """Wall time of training, evaluations included, in this process."""
    checkpoint: Optional[Path]
    """Path of the newest checkpoint; None if there is none."""
    stopped_by: Optional[int] = None
    """Signal that this process received to stop; None if there was none."""
    overflows: Optional[int] = None
    """Number of float16 values that training has clipped since the run began; None if the device counts none."""
    stopped_early: bool = False
    """Whether the run has ended before its last update, as `run.early_stopping` says."""

    @property
    def interrupted(self) -> bool:
        is_short = self.progress.update < self.total_updates and not self.stopped_early
        return is_short or self.evaluation is None


@contextmanager
def open_run_folder(
    path: Path,
    config: Config,
    *,
    resume: bool,
    allowed_changes: Sequence[str] = (),
    notify: Notify = lambda text: None,
) -> Iterator[RunFolder]:
    """Makes the folder of a new run, or opens the folder of an interrupted run, and locks it while the body runs.

    `allowed_changes` are keys that may differ from the config of the interrupted run; `notify` receives a note on each
    that does. Raises UserError if the folder holds another run, or cannot be written, or if the tracker's package is
    missing.
    """
    require_tracking(config)
    if resume:
        folder = RunFolder.reopen(path, config, allowed=allowed_changes, notify=notify)
    elif allowed_changes:
        raise UserError("--allow-config-change needs --resume: a new run takes any config")
    else:
        folder = RunFolder.create(path, config)
    try:
        yield folder
    except OSError as error:
        error.filename = error.filename or str(folder.path)  # the error of a full disk names no file
        raise
    finally:
        folder.release()


@contextmanager
def earlier_run_replaced(path: Path, config: Config, *, resume: bool) -> Iterator[None]:
    """Sets an earlier run of this config aside, and removes it at the end if a new one has begun in its place.

    If the new run could not begin, the earlier one is put back. Raises UserError as `set_run_aside` does.
    """
    if resume:
        raise UserError("--resume and --restart exclude each other: --restart removes the run that --resume continues")
    aside = set_run_aside(path, config)
    try:
        yield
    finally:
        if aside is not None and RunFolder(path).environment.exists():
            remove(aside)
        elif aside is not None and not os.path.lexists(str(path)):
            os.replace(str(aside), str(path))


def train(
    config: Config,
    device: Device,
    folder: RunFolder,
    *,
    display: TrainingDisplay = NO_DISPLAY,
    resume: bool = False,
    trust_pickle: bool = False,
    cache: Optional[ListingCache] = None,
) -> Summary:
    """Trains to the end of the config, or until interrupted; all results are written to the run folder.

    Raises ConfigError if the device cannot run the config, and UserError if its inputs would be synthetic.
    """
    require_runnable_on(config, device)
    train_source, eval_source = (
        open_source(config.data, config.model, split, cache=cache) for split in ("train", "eval")
    )
    total_updates = config.total_updates(len(train_source))
    weights = class_weights(config, train_source.labels, train_source.classes)
    labels_sha256 = hashlib.sha256(train_source.labels.tobytes()).hexdigest()
    description = ModelDescription.of_run(config, eval_source.classes, len(train_source), labels_sha256)
    started = time.monotonic()
    with open_backend(config, device, class_weights=weights) as backend:
        if resume and folder.newest_checkpoint() is not None:
            progress = restore(backend, description, folder, device, display.notify)
        else:
            progress = start(backend, config, display, trust_pickle=trust_pickle)
            warn_of_start_in_average(config, total_updates, display.notify)
        if resume:
            require_agreement(backend.instances, progress, folder)
        if progress.update < total_updates:
            backend.compile()
        if backend.instances.index == 0:
            folder.begin(environment(config, device))
        guess = loss_of_guess(config, weights)
        logger = RunLogger(config, folder, backend, progress, total_updates, display, guess)
        with logger, StopSignal(logger.notify) as stop:
            if resume:
                logger.resumed(progress)
            if evaluates_at(progress.update, total_updates, config):  # a resumed run may have been stopped before it
                logger.evaluate(progress, eval_source, stop)
            loader = training_loader(train_source, config, backend, progress, total_updates)
            for batch in logger.until_early_stop(stop.until_stopped(loader, agree=backend.instances.any)):
                logger.skipped(loader.skipped)
                rate = learning_rate(progress.update, total_updates, config.optim)
                result = backend.train_step(batch, rate)
                progress = Progress.at(progress.host_step + 1, config.pipeline)
                logger.step(progress, result, rate, loader)
                if saves_at(progress.update, total_updates, config):
                    logger.checkpoint(progress, description, device)
                if evaluates_at(progress.update, total_updates, config):
                    logger.evaluate(progress, eval_source, stop)
                logger.begin_writing()
            logger.checkpoint(progress, description, device)  # before the evaluation, which may fail
            logger.wait_for_checkpoint()
            if progress.update == total_updates:
                logger.evaluate(progress, eval_source, stop)
        if logger.writes:
            save_examples(eval_source, folder.examples)
        last_update = progress.update if logger.stops_early else total_updates
        evaluation = logger.evaluation_at(last_update, len(eval_source))
        overflows, checkpoint = backend.num_overflows, folder.newest_checkpoint()
    seconds = time.monotonic() - started
    early = logger.stops_early and progress.update < total_updates
    return Summary(progress, total_updates, evaluation, seconds, checkpoint, stop.number, overflows, early)


def restore(
    backend: Backend, description: ModelDescription, folder: RunFolder, device: Device, notify: Notify
) -> Progress:
    """Loads the newest whole checkpoint of a resumed run into the backend and returns its progress.

    `notify` receives a warning on newer checkpoints that are damaged. Raises CheckpointError if none is whole.
    """

    def load(checkpoint: Path) -> Progress:
        state, progress = load_resumable(
            checkpoint, description, device_kind=device.kind, numerics=device.numerics, notify=notify
        )
        try:
            backend.load_state_dict(state)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint} does not fit this run: {shortened(reason_of(error), 200)}; remove it to resume from an "
                "earlier one"
            ) from None
        return progress

    return first_whole(checkpoints_in(folder.checkpoints), load, notify=notify)


def require_agreement(instances: Instances, progress: Progress, folder: RunFolder) -> None:
    """Raises RunFailed in every host process unless all of them have restored the same update."""
    mean = instances.mean(torch.tensor([float(progress.update)])).item()
    if instances.any(mean != progress.update):
        raise RunFailed(
            f"this host process resumes at update {progress.update:,} and another one elsewhere: make the same "
            f"checkpoints readable in {folder.checkpoints} on all hosts"
        )


def start(backend: Backend, config: Config, display: TrainingDisplay, *, trust_pickle: bool) -> Progress:
    """Loads the weights of model.init, or keeps the freshly initialised ones."""
    if config.model.init is not None:
        load_initial_weights(backend, config, trust_pickle=trust_pickle, notify=display.notify)
    return Progress()


def warn_of_start_in_average(config: Config, total_updates: int, notify: Notify) -> None:
    """Warns if more than a tenth of the average of the weights will be the initial weights at the end of the run."""
    share = share_of_start(config, total_updates)
    if share > 0.1:
        enough = 0.01 ** (1 / total_updates)
        notify(
            f"warning: after {counted(total_updates, 'update')}, {100 * share:.0f} % of the averaged weights are the "
            f"initial ones: lower optim.ema_decay ({config.optim.ema_decay}), such as to {enough:.4g}"
        )


def training_loader(
    source: Source, config: Config, backend: Backend, progress: Progress, total_updates: int
) -> TrainingLoader:
    """Returns the loader of the host steps that are left; it loads the samples that this process feeds."""
    return TrainingLoader(
        source,
        config,
        backend.instances.positions(BatchPlan.of(config)),
        start_step=progress.host_step,
        total_steps=total_updates // config.pipeline.device_iterations,
        float_format=backend.float_format,
    )


def due(every: Optional[int], update: int) -> bool:
    """Tells whether something that happens every `every` updates happens after this one."""
    return every is not None and update % every == 0


def evaluates_at(update: int, total_updates: int, config: Config) -> bool:
    """Tells whether a run evaluates after this update, or before the first one, and then trains on."""
    if update == 0:
        return config.run.evaluate_at_start
    return 0 < update < total_updates and due(config.run.evaluate_every, update)


def saves_at(update: int, total_updates: int, config: Config) -> bool:
    """Tells whether a run saves a checkpoint after this update, before its end; the best evaluation needs one."""
    keeps_best = config.run.keep_best is not None and evaluates_at(update, total_updates, config)
    return keeps_best or due(config.run.checkpoint_every, update)


def save_examples(source: Source, folder: Path) -> None:
    """Writes PNG files, named after their classes, of the first held-out images; leaves out unreadable ones."""
    if folder.is_symlink():
        folder.unlink()  # its target is not part of the run
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(min(NUM_EXAMPLES, len(source))):
        name = source.classes[int(source.labels[index])].lower()
        file_name = "".join(letter if letter.isalnum() else "-" for letter in name[:_LONGEST_CLASS])
        encoded = io.BytesIO()
        with suppress(DataError):  # an image that cannot be read is reported by the evaluation that reads it
            source.image(index).save(encoded, "PNG")
            write_whole(folder / f"{index:02d}_{file_name}.png", encoded.getvalue())


class RunLogger:
    """Writes metrics and checkpoints and shows progress; of several host processes, only the first one writes."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        backend: Backend,
        progress: Progress,
        total_updates: int,
        display: TrainingDisplay,
        guess: float,
    ) -> None:
        """`guess` is the loss of a guess, by which a divergence is recognised."""
        self._guess = guess
        self._config, self._folder, self._backend = config, folder, backend
        self.writes = backend.instances.index == 0
        # Processes that write nothing read earlier evaluations too, because all processes must evaluate together.
        self._evaluations = evaluations_until(folder.metrics, progress.update)
        self._metrics: Optional[Metrics] = None
        if self.writes:
            self._metrics = Metrics(folder, config, resumed_at=progress.update, notify=display.notify)
        if self.writes:
            set_aside_later_checkpoints(folder.checkpoints, progress.update)
        self._best = BestCheckpoint(folder, config.run.keep_best, self._evaluations) if self.writes else None
        self._writer = BackgroundWriter()
        self._display, self._total_updates = display, total_updates
        self._saved_update = progress.update
        self._skipped: Set[str] = set()
        self._logged_overflows = overflows_until(folder.metrics, progress.update)
        self._warned_of_overflow = False
        self._last_step: Optional[Tuple[StepResult, float, TrainingLoader]] = None
        self._pending: Optional[Progress] = None
        self._last_time = time.monotonic()

    def __enter__(self) -> RunLogger:
        self._display.start(self._total_updates, done=self._saved_update)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._display.stop()
        try:
            self._writer.wait()
        except Exception:
            if exc[0] is None:
                raise
        finally:
            if self._metrics is not None:
                self._metrics.close()

    def notify(self, text: str) -> None:
        self._display.notify(text)

    def resumed(self, progress: Progress) -> None:
        """Shows where a resumed run continues."""
        none_yet = "" if progress.update else ": there is no checkpoint yet, so the run starts from the beginning"
        self.notify(f"resuming at update {progress.update:,}{none_yet}")
        if self.writes:
            self._remove_old_checkpoints()  # the run may have ended before it could

    def step(self, progress: Progress, result: StepResult, rate: float, loader: TrainingLoader) -> None:
        """Logs a host step; a GPU still computes it, so it is logged with the next call, or before what needs it.

        Raises RunFailed if its loss is not finite or has exploded, and the error of the last checkpoint's write.
        """
        self.finish_step()
        self._writer.raise_error()
        self._last_step, self._pending = (result, rate, loader), progress
        if result.is_known:
            self.finish_step()

    def finish_step(self) -> None:
        """Logs the last host step, if that has not been done. Raises as `step` does."""
        if self._pending is None or self._last_step is None:
            return
        (result, rate, _), progress, self._pending = self._last_step, self._pending, None
        self._warn_of_overflow(progress)
        problem = problem_of_loss(result, self._config, self._guess)
        if problem is not None:
            self.wait_for_checkpoint()
            before = progress.update - self._config.pipeline.device_iterations
            exploded = set_aside_exploded(self._folder, before) if self.writes else []
            if self._best is not None:
                self._best.find(self._evaluations)  # its checkpoint may be among them
            raise self._diverged(problem, progress, exploded)
        num_images = result.num_samples * self._backend.instances.count
        speed = num_images / self._seconds_since_last()
        self._display.step(progress.update, loss=result.loss, learning_rate=rate, images_per_second=speed)
        if progress.host_step % self._config.run.log_every == 0:
            self._write(progress, loss=result.loss, learning_rate=rate, images_per_second=round(speed, 2))

    def _warn_of_overflow(self, progress: Progress) -> None:
        """Says once that values were too large for float16; an automatic loss scale finds its limit by such values."""
        precision, count = self._config.precision, (self._backend.num_overflows or 0) - self._logged_overflows
        if count <= 0 or self._warned_of_overflow or precision.automatic_loss_scale:
            return
        self._warned_of_overflow = True
        self.notify(
            f"warning: float16 overflow: {counted(count, 'value')} became 65504 at update "
            f"{progress.update:,}, as on an IPU: "
            f"lower precision.loss_scale ({precision.loss_scale:g}), or optim.learning_rate if the scale is small; "
            f"{self._folder.metrics.name} counts the next ones"
        )

    def _diverged(self, problem: str, progress: Progress, exploded: Sequence[Path] = ()) -> RunFailed:
        """Records a divergence, and returns the error. `exploded` are checkpoints that were set aside."""
        assert self._last_step is not None
        result, rate, loader = self._last_step
        where = ""
        if self.writes:
            samples = loader.samples_of(progress.host_step - 1)
            with suppress(OSError):  # such as a full disk: the error below matters more
                path = record_divergence(self._folder, problem, progress, result, rate, samples, exploded)
                where = f"; the samples are in {path}"
        moved = f" ({exploded[0].name} came after the explosion)" if exploded else ""
        return RunFailed(
            f"{problem} at update {progress.update}: lower optim.learning_rate or precision.loss_scale; the learning "
            f"rate was {rate:.3g}; the last checkpoint from before is "
            f"{self._folder.newest_checkpoint() or 'none'}{moved}{where}"
        )

    def skipped(self, images: Iterable[str]) -> None:
        """Reports images that could not be read, each image once."""
        for image in images:
            if image not in self._skipped:
                self._skipped.add(image)
                if self.writes:
                    with self._folder.skipped.open("a", encoding="utf-8", errors="surrogateescape") as file:
                        file.write(f"{single_line(image)}\n")
                self.notify(f"skipped image {len(self._skipped):,}: {image}")

    def evaluate(self, progress: Progress, source: Source, stop: StopSignal) -> None:
        """Evaluates on all images, unless this update has been evaluated; an interrupted evaluation is not recorded.

        All processes evaluate if one of them has not. A checkpoint that has been prepared is written meanwhile.
        """
        self.finish_step()
        is_known = self.evaluation_at(progress.update, len(source)) is not None
        if not self._backend.instances.any(not is_known):
            return
        self._writer.join()  # the loader's processes are forked, which is unsafe while a thread writes
        loader = evaluation_loader(source, self._config, self._backend)
        try:
            batches = stop.raise_if_stopped(loader, agree=self._backend.instances.any)
            found = evaluate_batches(self._backend, self._writing_from_first(batches), loss=self._config.optim.loss)
        except Interrupted:
            return
        if is_known:
            return
        self.skipped(loader.skipped)
        if self.writes and found.scores is not None:
            worst = found.scores.worst(NUM_MISTAKES)
            counts = {"num_images": found.num_images, "num_searched": len(found.scores)}
            write_last_evaluation(self._folder, progress.update, found.confusion, worst, source, **counts)
        fewer = {"evaluation_images": found.num_images} if found.num_images < len(source) else {}
        self._write(progress, top1=found.top1, top5=found.top5, evaluation_loss=found.loss, **fewer)
        self.notify(
            f"update {progress.update}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, loss {found.loss:.4f} on "
            f"{found.num_images:,} held-out images"
        )
        if self._best is not None and self._config.run.keep_best is not None:
            self._writer.wait()  # the checkpoint of this update may be the best
            self._best.find(self._evaluations)
            self._remove_old_checkpoints()
        self._seconds_since_last()

    @property
    def stops_early(self) -> bool:
        """Whether the run ends after the evaluations so far, as `run.early_stopping` says."""
        return stops_early(self._evaluations, self._config.run)

    def until_early_stop(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """Yields the batches until the evaluations end the run; no batch is loaded after that."""
        while not self.stops_early:
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
        self.finish_step()
        measure, count = self._config.run.keep_best or "top1", self._config.run.early_stopping
        self.notify(f"stopped early: {measure} has not become better in {counted(count or 0, 'evaluation')}")

    def _writing_from_first(self, batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
        """Yields the batches, and begins to write a prepared checkpoint once the loader has started."""
        for batch in batches:
            self._writer.begin()
            yield batch

    def evaluation_at(self, update: int, num_images: int) -> Optional[Evaluation]:
        """Returns the evaluation at an update, of this process or of an earlier one; None if there was none."""
        for line in self._evaluations:
            if line["update"] == update:
                counted = line.get("evaluation_images", num_images)
                return Evaluation(line["top1"], line["top5"], line["evaluation_loss"], counted)
        return None

    def checkpoint(self, progress: Progress, description: ModelDescription, device: Device) -> None:
        """Copies the state for a checkpoint if there were updates since the last one; `begin_writing` saves it.

        Raises RunFailed if a weight is not finite, and the error of the checkpoint before if that could not be written.
        """
        self.finish_step()
        if progress.update in (0, self._saved_update):
            return
        self.wait_for_checkpoint()  # before the state is copied: one copy at a time is in memory
        self._saved_update = progress.update
        state = self._backend.state_dict()
        problem = problem_of_state(state)
        if problem is not None:
            raise self._diverged(problem, progress)
        if self.writes:
            self._writer.prepare(lambda: self._save(state, progress, description, device))
        self._seconds_since_last()

    def begin_writing(self) -> None:
        """Begins to write a checkpoint whose state was copied, if that has not begun; training continues meanwhile."""
        self._writer.begin()

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is on the disk. Raises the error if it could not be written."""
        self._writer.wait()

    def _save(self, state: Dict[str, Any], progress: Progress, description: ModelDescription, device: Device) -> None:
        """Writes a checkpoint and then removes old ones. Raises RunFailed if that is not possible."""
        try:
            where, numerics = self._folder.checkpoints, device.numerics
            save_checkpoint(where, state, progress, description, device_kind=device.kind, numerics=numerics)
        except (OSError, RunFailed) as error:
            raise RunFailed(
                f"cannot write the checkpoint of update {progress.update:,}: {reason_of(error)}; the last whole one is "
                f"{self._folder.newest_checkpoint() or 'none'}: free some space, and continue with --resume"
            ) from None
        self._remove_old_checkpoints()

    def _remove_old_checkpoints(self) -> None:
        """Removes the checkpoints that the config does not keep. Raises RunFailed if that is not possible."""
        best = None if self._best is None else self._best.kept
        try:
            remove_old_checkpoints(self._folder.checkpoints, self._config.run.keep_checkpoints, best=best)
        except OSError as error:
            raise RunFailed(
                f"cannot remove old checkpoints in {self._folder.checkpoints}: {reason_of(error)}; all newer ones are "
                "whole: continue with --resume, which tries again"
            ) from None

    def _seconds_since_last(self) -> float:
        """Returns the seconds since the last host step, evaluation or checkpoint ended."""
        last, self._last_time = self._last_time, time.monotonic()
        return max(self._last_time - last, 1e-9)

    def _write(self, progress: Progress, **values: float) -> None:
        counts = {"update": progress.update, "host_step": progress.host_step, "samples": progress.samples}
        if self._skipped:
            counts["skipped"] = len(self._skipped)
        if self._backend.num_overflows is not None:
            counts["overflows"] = max(0, self._backend.num_overflows - self._logged_overflows)
            self._logged_overflows = self._backend.num_overflows
        line = dict(counts, **values)
        if "top1" in line:
            self._evaluations.append(line)
        if self._metrics is not None:
            self._metrics.write(line)

"""Training: opens the data, builds the backend, restores, then steps, evaluates and saves until the end."""

from __future__ import annotations

import hashlib
import io
import os
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

import torch

from vit_ipu.averaging import share_of_start
from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Backend, Device, Instances
from vit_ipu.class_balance import class_weights
from vit_ipu.config import Config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.base import Source
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import CheckpointError, DataError, RunFailed, UserError
from vit_ipu.evaluate import Evaluation
from vit_ipu.files import remove, write_whole
from vit_ipu.losses import loss_of_guess
from vit_ipu.optim import learning_rate
from vit_ipu.pipeline import BatchPlan
from vit_ipu.runs.checkpoint import (
    Progress,
    load_resumable,
)
from vit_ipu.runs.display import NO_DISPLAY, TrainingDisplay
from vit_ipu.runs.early_stopping import stops_early
from vit_ipu.runs.environment import environment
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.logger import RunLogger
from vit_ipu.runs.metrics import evaluations_until, require_tracking
from vit_ipu.runs.removal import set_run_aside
from vit_ipu.signals import StopSignal
from vit_ipu.text import Notify, counted, reason_of, shortened
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


@dataclass(frozen=True)
class TrainingData:
    """Images of a run, and what follows from them."""

    train: Source
    evaluation: Source
    total_updates: int
    class_weights: Optional[Tuple[float, ...]]
    """Weights (K,) of the classes in the loss; None if the config has none."""
    guess: float
    """Loss of a guess, in nats."""
    description: ModelDescription
    """Description of the model that its checkpoints have."""

    @classmethod
    def open(cls, config: Config, cache: Optional[ListingCache]) -> TrainingData:
        """Opens both splits. Raises DataError if images or classes are missing."""
        train, evaluation = (open_source(config.data, config.model, split, cache=cache) for split in ("train", "eval"))
        total_updates = config.total_updates(len(train))
        weights = class_weights(config, train.labels, train.classes)
        labels_sha256 = hashlib.sha256(train.labels.tobytes()).hexdigest()
        description = ModelDescription.of_run(config, evaluation.classes, len(train), labels_sha256)
        return cls(train, evaluation, total_updates, weights, loss_of_guess(config, weights), description)


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
    data = TrainingData.open(config, cache)
    total_updates, started = data.total_updates, time.monotonic()
    with open_backend(config, device, class_weights=data.class_weights) as backend:
        progress = begin(config, device, folder, backend, data, display, resume=resume, trust_pickle=trust_pickle)
        logger = RunLogger(config, folder, backend, progress, total_updates, display, data.guess, data.evaluation)
        loader = training_loader(data.train, config, backend, progress, total_updates)
        with logger, StopSignal(logger.notify) as stop, closing(iter(loader)) as batches:
            if resume:
                logger.resumed(progress)
            if evaluates_at(progress.update, total_updates, config):  # a resumed run may have been stopped before it
                logger.evaluate(progress, stop)
            for batch in logger.until_early_stop(stop.until_stopped(batches, agree=backend.instances.any)):
                logger.skipped(loader.skipped)
                rate = learning_rate(progress.update, total_updates, config.optim)
                result = backend.train_step(batch, rate)
                progress = Progress.at(progress.host_step + 1, config.pipeline)
                logger.step(progress, result, rate, loader)
                if saves_at(progress.update, total_updates, config):
                    logger.checkpoint(progress, data.description, device)
                if evaluates_at(progress.update, total_updates, config):
                    logger.evaluate(progress, stop)
                logger.begin_writing()
            logger.checkpoint(progress, data.description, device)  # before the evaluation, which may fail
            logger.wait_for_checkpoint()
            if progress.update == total_updates:
                logger.evaluate(progress, stop)
        if logger.writes:
            save_examples(data.evaluation, folder.examples)
    seconds = time.monotonic() - started
    return summarize(logger, progress, data, folder, backend, seconds=seconds, stopped_by=stop.number)


def begin(
    config: Config,
    device: Device,
    folder: RunFolder,
    backend: Backend,
    data: TrainingData,
    display: TrainingDisplay,
    *,
    resume: bool,
    trust_pickle: bool,
) -> Progress:
    """Makes the backend and the run folder ready for the first host step, and returns the progress so far."""
    if resume and folder.newest_checkpoint() is not None:
        progress = restore(backend, data.description, folder, device, display.notify)
    else:
        progress = start(backend, config, display, trust_pickle=trust_pickle)
        warn_of_start_in_average(config, data.total_updates, display.notify)
    if resume:
        require_agreement(backend.instances, progress, folder)
    evaluations = evaluations_until(folder.metrics, progress.update)
    if progress.update < data.total_updates and not stops_early(evaluations, config.run):
        backend.compile()
    if backend.instances.index == 0:
        folder.begin(environment(config, device))
    return progress


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
        sends_first=backend.blocks_threads,
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


def summarize(
    logger: RunLogger,
    progress: Progress,
    data: TrainingData,
    folder: RunFolder,
    backend: Backend,
    *,
    seconds: float,
    stopped_by: Optional[int],
) -> Summary:
    """Returns the result of a run that has ended with this progress."""
    last_update = progress.update if logger.stops_early else data.total_updates
    return Summary(
        progress=progress,
        total_updates=data.total_updates,
        evaluation=logger.evaluation_at(last_update),
        seconds=seconds,
        checkpoint=folder.newest_checkpoint(),
        stopped_by=stopped_by,
        overflows=backend.num_overflows,
        stopped_early=logger.stops_early and progress.update < data.total_updates,
    )


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

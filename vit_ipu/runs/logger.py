"""Log of a run: its metrics, evaluations and checkpoints, and what a person sees of them while it trains."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Tuple

from vit_ipu.backends.contract import Backend, Device, HostBatch, StepResult
from vit_ipu.config import Config
from vit_ipu.data.loading.loader import EvaluationLoader, TrainingLoader
from vit_ipu.data.sources.base import Source
from vit_ipu.errors import Interrupted, RunFailed, WorkersFailed
from vit_ipu.evaluate import Evaluation, evaluate_batches, evaluation_loader
from vit_ipu.runs.background import BackgroundWriter
from vit_ipu.runs.best import BestCheckpoint
from vit_ipu.runs.checkpoint import Progress, remove_old_checkpoints, save_checkpoint, set_aside_later_checkpoints
from vit_ipu.runs.display import TrainingDisplay
from vit_ipu.runs.divergence import problem_of_loss, problem_of_state, record_divergence, set_aside_exploded
from vit_ipu.runs.early_stopping import stops_early
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import NUM_MISTAKES, write_last_evaluation
from vit_ipu.runs.metrics import Metrics, evaluations_until, overflows_until
from vit_ipu.runs.skipped import SkippedImages
from vit_ipu.signals import StopSignal
from vit_ipu.text import counted, reason_of
from vit_ipu.weights.native import ModelDescription


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
        held_out: Source,
    ) -> None:
        """`guess` is the loss of a guess, by which a divergence is recognised; `held_out` are the evaluated images.

        Raises UserError if the list of the images that an interrupted run skipped cannot be read.
        """
        self._guess, self._held_out = guess, held_out
        self._config, self._folder, self._backend = config, folder, backend
        self.writes = backend.instances.index == 0
        self._skipped = SkippedImages(folder.skipped, writes=self.writes)
        # Processes that write nothing read earlier evaluations too, because all processes must evaluate together.
        self._evaluations = evaluations_until(folder.metrics, progress.update)
        self._metrics: Optional[Metrics] = None
        if self.writes:
            self._metrics = Metrics(folder, config, resumed_at=progress.update, notify=display.notify)
        if self.writes:
            set_aside_later_checkpoints(folder.checkpoints, progress.update)
        self._best = BestCheckpoint(folder, config.run.keep_best, self._evaluations) if self.writes else None
        self._writer = BackgroundWriter()
        self._open = ExitStack()
        self._loader: Optional[EvaluationLoader] = None
        self._display, self._total_updates = display, total_updates
        self._saved_update = progress.update
        self._logged_overflows = overflows_until(folder.metrics, progress.update)
        self._warned_of_overflow = False
        self._last_step: Optional[Tuple[StepResult, float, TrainingLoader]] = None
        self._pending: Optional[Progress] = None
        self._end = time.monotonic()

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
            self._open.close()  # last: while the processes end, which may take seconds, Ctrl-C can interrupt it
        last = self._folder.newest_checkpoint()
        if isinstance(exc[1], WorkersFailed) and last is not None:
            raise WorkersFailed(f"{exc[1]}; the last checkpoint is {last}: continue with --resume") from None

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
        speed = num_images / self._seconds_of_step(result)
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
        """Reports images that could not be read, each image once, also if the run is resumed."""
        for image in self._skipped.add(images):
            self.notify(f"skipped image {len(self._skipped):,}: {image}")

    def evaluate(self, progress: Progress, stop: StopSignal) -> None:
        """Evaluates on all held-out images, unless this update has been evaluated.

        An interrupted evaluation is not recorded. All processes evaluate if one of them has not. A checkpoint that has
        been prepared is written meanwhile.
        """
        self.finish_step()
        is_known = self.evaluation_at(progress.update) is not None
        if not self._backend.instances.any(not is_known):
            return
        loader = self._evaluation_loader()
        try:
            with closing(iter(loader)) as loaded:
                batches = stop.raise_if_stopped(loaded, agree=self._backend.instances.any)
                found = evaluate_batches(self._backend, self._writing_from_first(batches), loss=self._config.optim.loss)
        except Interrupted:
            return
        if not is_known:
            self.skipped(loader.skipped)
            self._record(progress, found)
            self._begin_timing()

    def _evaluation_loader(self) -> EvaluationLoader:
        """Returns the loader of all evaluations of the run, which keeps its worker processes."""
        if self._loader is None:
            self._loader = self._open.enter_context(evaluation_loader(self._held_out, self._config, self._backend))
        if not self._loader.has_workers:
            self._writer.join()  # its processes are forked, which is unsafe while a thread writes
        return self._loader

    def _record(self, progress: Progress, found: Evaluation) -> None:
        """Writes and shows an evaluation, and keeps the checkpoint of the best one."""
        if self.writes and found.scores is not None:
            worst = found.scores.worst(NUM_MISTAKES)
            counts = {"num_images": found.num_images, "num_searched": len(found.scores)}
            write_last_evaluation(self._folder, progress.update, found.confusion, worst, self._held_out, **counts)
        fewer = {"evaluation_images": found.num_images} if found.num_images < len(self._held_out) else {}
        self._write(progress, top1=found.top1, top5=found.top5, evaluation_loss=found.loss, **fewer)
        self.notify(
            f"update {progress.update}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, loss {found.loss:.4f} on "
            f"{found.num_images:,} held-out images"
        )
        if self._best is not None and self._config.run.keep_best is not None:
            self._writer.wait()  # the checkpoint of this update may be the best
            self._best.find(self._evaluations)
            self._remove_old_checkpoints()

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

    def evaluation_at(self, update: int) -> Optional[Evaluation]:
        """Returns the evaluation at an update, of this process or of an earlier one; None if there was none."""
        for line in self._evaluations:
            if line["update"] == update:
                counted = line.get("evaluation_images", len(self._held_out))
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
        self._begin_timing()

    def begin_writing(self) -> None:
        """Begins to write a checkpoint whose state was copied, if that has not begun; training continues meanwhile.

        If the device stops threads, the checkpoint is written first: a thread would run only between host steps.
        """
        self._writer.begin()
        if self._backend.blocks_threads and self._writer.is_running:
            self._writer.wait()
            self._begin_timing()

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

    def _seconds_of_step(self, result: StepResult) -> float:
        """Returns the seconds from the end of the host step before to the end of this one."""
        end = result.ended_at
        before, self._end = self._end, time.monotonic() if end is None else end
        return max(self._end - before, 1e-9)

    def _begin_timing(self) -> None:
        """Leaves what took place since the last host step, such as an evaluation, out of the time of the next."""
        self._end = time.monotonic()

    def _write(self, progress: Progress, **values: float) -> None:
        counts = {"update": progress.update, "host_step": progress.host_step, "samples": progress.samples}
        if len(self._skipped):
            counts["skipped"] = len(self._skipped)
        if self._backend.num_overflows is not None:
            counts["overflows"] = max(0, self._backend.num_overflows - self._logged_overflows)
            self._logged_overflows = self._backend.num_overflows
        line = dict(counts, **values)
        if "top1" in line:
            self._evaluations.append(line)
        if self._metrics is not None:
            self._metrics.write(line)

"""Worker processes that fill host steps directly in shared buffers, while earlier host steps are consumed.

torch's DataLoader starts the processes. Each job is a part of a step: a worker writes the images and labels of the job
into their places in the step's buffer and answers only with errors, so that nothing is collated, copied or sent
afterwards. Steps are yielded in order.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Callable, Deque, Generator, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_ipu.data.loading.buffers import Buffer, page_locked
from vit_ipu.data.loading.sending import wait_until_sent
from vit_ipu.errors import RunFailed, UserError, WorkersFailed
from vit_ipu.signals import end_with_parent, ignore_in_worker
from vit_ipu.text import counted, reason_of
from vit_ipu.threads import AwaitedThread

Entry = Tuple[int, int]
"""The epoch and the index of an image."""
Skipped = str
"""A message about an image that could not be read, with the reason."""

JOB_SIZES = (8, 64)
"""The smallest and largest number of images of a job, which is otherwise a worker's share of a step: a message costs as
much as half an image."""
_GRACE = 5.0
"""Seconds that workers have to exit before they are killed."""


Steps = Generator["Filled", None, None]
"""Filled steps. Close them if you stop before the last one: a destructor would lose Ctrl-C while the workers end."""
Fill = Callable[[Buffer, int, Sequence[Entry]], List[Skipped]]
"""Writes the images of the entries into the buffer from a given place on; raises DataError for an unreadable image."""


@dataclass(frozen=True)
class Filled:
    """A filled host step, whose tensors may be overwritten once the next step is requested."""

    images: Tensor
    labels: Tensor
    skipped: Sequence[Skipped]


def fill_in_process(steps: Iterable[List[Entry]], fill: Fill, new_buffer: Callable[[int], Buffer]) -> Steps:
    """Yields the steps, loaded in this process, each in its own buffer."""
    for entries in steps:
        buffer = new_buffer(len(entries))
        skipped = fill(buffer, 0, entries)
        yield Filled(buffer.images, buffer.labels, skipped)


# ------------------------------------------------------------------------------------------ the pool


class _Job(NamedTuple):
    slot: int
    start: int
    entries: Sequence[Entry]


class _Answer(NamedTuple):
    """A worker's answer to a job."""

    skipped: List[Skipped]
    error: Optional[Exception]


class _Step(NamedTuple):
    """A host step that is being filled."""

    slot: int
    num_images: int
    num_jobs: int


class _Jobs(Dataset):  # type: ignore[type-arg]
    """The data set of DataLoader's workers: looking up a job runs the job and returns its answer."""

    def __init__(self, fill: Fill, buffers: Sequence[Buffer]) -> None:
        self._fill, self._buffers = fill, buffers

    def __getitem__(self, job: _Job) -> _Answer:
        try:
            return _Answer(self._fill(self._buffers[job.slot], job.start, job.entries), None)
        except UserError as error:
            return _Answer([], error)
        except Exception as error:  # a traceback cannot be sent: only its last line is
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
            return _Answer([], RunFailed(f"a process that loads images failed: {text}"))


class WorkerPool:
    """DataLoader's worker processes, and the assignment of steps to buffers; kept for one or more series of steps.

    DataLoader issues jobs for at most all buffers but one ahead of the answers, so that no worker writes into the
    buffer that is being consumed.
    """

    def __init__(
        self,
        fill: Fill,
        buffers: Sequence[Buffer],
        num_workers: int,
        *,
        page_lock: bool = True,
        sends_first: bool = False,
    ) -> None:
        """`num_workers` processes load into the two or more `buffers`: all but one are filled ahead.

        `page_lock`: let a GPU, if there is one, read the buffers directly. `sends_first`: send the next jobs before a
        step is yielded, because its consumer stops this process's threads.
        """
        self._sends_first = sends_first
        self._fill, self._buffers, self._num_workers = fill, buffers, num_workers
        self._steps: Iterable[List[Entry]] = ()
        self._begun: Deque[_Step] = deque()
        self._processes: List[Any] = []
        self._loader: Any = None
        self._answers: Any = None
        self._page_lock, self._locked = page_lock, ExitStack()
        self._ending: Optional[AwaitedThread] = None
        self._is_filling = False
        self.is_closed = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def filled(self, steps: Iterable[List[Entry]]) -> Steps:
        """Yields each step of a series when all its jobs are done. The pool is closed unless all of them are taken.

        Only the last step may be smaller than a buffer. Raises the error of a step when that step is due, WorkersFailed
        if a worker cannot be started or dies, RuntimeError if another series is unfinished, or the pool was closed.
        """
        try:
            self._begin(steps)
            for first in self._received():
                step = self._begun.popleft()
                answers = [first, *islice(self._received(), step.num_jobs - 1)]
                for answer in answers:
                    if answer.error is not None:
                        raise answer.error
                buffer = self._buffers[step.slot]
                skipped = [line for answer in answers for line in answer.skipped]
                if self._sends_first:
                    wait_until_sent(self._answers)
                yield Filled(buffer.images[: step.num_images], buffer.labels[: step.num_images], skipped)
                self._require_open()
            self._is_filling = False
        except BaseException:  # also if the consumer stops: workers may still write into the buffers
            self.close()
            raise

    @property
    def can_continue(self) -> bool:
        """Whether another series can be asked for: the last one was taken to its end, and no worker has died since."""
        return not (self.is_closed or self._is_filling) and all(process.exitcode is None for process in self._processes)

    def close(self) -> None:
        """Stops the workers, and kills workers that do not exit. If `close` is interrupted, call `close` again."""
        if self.is_closed:
            return
        self._locked.close()
        # DataLoader waits for its workers in a destructor, where Ctrl-C would be lost: this needs another thread.
        if self._ending is None:
            ending = AwaitedThread(self._free_iterator)
            with suppress(RuntimeError):  # no further thread can be started: the workers are killed
                ending.start()
                self._ending = ending
                ending.join(_GRACE)
        self._end()

    def _free_iterator(self) -> None:
        self._loader = self._answers = None

    def _end(self) -> None:
        """Kills the remaining workers, which have nothing to save."""
        if self.is_closed:
            return
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        if self._ending is not None:  # the end of the interpreter aborts if a thread frees torch's objects meanwhile
            self._ending.join(_GRACE)
        self._loader = self._answers = None
        self.is_closed = True
        atexit.unregister(self._end)

    def __iter__(self) -> Iterator[_Job]:
        """Yields the jobs of the series that `filled` has begun, as DataLoader's sampler."""
        for number, entries in enumerate(self._steps):
            starts = self._starts(len(entries))
            self._begun.append(_Step(number % len(self._buffers), len(entries), len(starts)))
            for start in starts:
                yield _Job(number % len(self._buffers), start, entries[start : start + starts.step])

    def _starts(self, count: int) -> range:
        """Returns the positions where the jobs of a step of `count` images start."""
        fewest, most = JOB_SIZES
        return range(0, count, min(max(-(-count // self._num_workers), fewest), most))

    def _begin(self, steps: Iterable[List[Entry]]) -> None:
        """Issues the first jobs of a series, to processes that are started with the first series."""
        self._require_open()
        if self._is_filling:
            raise RuntimeError("another series of steps is unfinished: take it to its end first, or use another pool")
        self._steps, self._is_filling = steps, True
        if self._loader is None:
            # Runs before multiprocessing's own clean-up, which would wait for workers that ignore SIGTERM.
            atexit.register(self._end)
            self._start()
            self._locked.enter_context(page_locked(self._buffers if self._page_lock else ()))
        else:
            with self._worker_death_reported():
                self._answers = iter(self._loader)

    def _require_open(self) -> None:
        if self.is_closed:
            raise RuntimeError(
                "the processes that load images were stopped, as another series of steps does that begins before the "
                "end of this one: ask for the images again"
            )

    def _start(self) -> None:
        """Starts DataLoader's workers. If one cannot be started, kills the other workers and raises WorkersFailed."""
        ahead = (len(self._buffers) - 1) * len(self._starts(len(self._buffers[0].labels)))
        workers = min(self._num_workers, ahead)
        others, problem = set(multiprocessing.active_children()), ""
        with _destructor_errors_suppressed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # more workers than cores are the user's choice
            try:
                self._loader = DataLoader(
                    _Jobs(self._fill, self._buffers),
                    batch_size=None,
                    sampler=self,
                    num_workers=workers,
                    prefetch_factor=ahead // workers,
                    persistent_workers=True,
                    worker_init_fn=_begin_work,
                    multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
                    generator=torch.Generator(),  # otherwise DataLoader draws from torch's global generator
                )
                with _sigchld_handler_restored():
                    self._answers = iter(self._loader)
            except BaseException as error:
                self._processes = self._started_beside(others)
                self._end()  # before the half-made iterator is freed, which would wait for its workers
                if not isinstance(error, (OSError, RuntimeError)):  # RuntimeError: a thread cannot be started
                    raise
                problem = reason_of(error)
            else:
                self._processes = self._started_beside(others)
        if problem:
            raise WorkersFailed(
                f"cannot start {counted(self._num_workers, 'process', 'processes')} to load "
                f"images: {problem}; lower data.num_workers"
            )

    @staticmethod
    def _started_beside(others: Set[Any]) -> List[Any]:
        return [child for child in multiprocessing.active_children() if child not in others]

    def _received(self) -> Iterator[_Answer]:
        with self._worker_death_reported():
            yield from self._answers

    @contextmanager
    def _worker_death_reported(self) -> Iterator[None]:
        """Raises WorkersFailed for DataLoader's error if a worker has died."""
        try:
            yield
        except RuntimeError:
            exit_codes = [process.exitcode for process in self._processes if process.exitcode is not None]
            if not exit_codes:
                raise
            raise WorkersFailed(
                f"a process that loads images died (exit code {exit_codes[0]}): out of memory? Lower "
                "data.num_workers, and see the system's log"
            ) from None


def _begin_work(number: int) -> None:
    """Prepares a worker process."""
    ignore_in_worker()
    end_with_parent()  # DataLoader looks for its parent only every five seconds
    gc.freeze()  # a collection would touch the main process's objects, and so copy all their memory


@contextmanager
def _sigchld_handler_restored() -> Iterator[None]:
    """Takes back the handler of SIGCHLD that DataLoader sets, which raises from any instruction of the main process.

    A worker that dies is still noticed once the main process has waited for five seconds without any worker's answer.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def _destructor_errors_suppressed() -> Iterator[None]:
    """Suppresses the errors that DataLoader's iterator prints if it is freed after its constructor failed."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = before

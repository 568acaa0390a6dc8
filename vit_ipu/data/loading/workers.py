"""Host steps filled by processes, straight into shared buffers, while earlier ones are consumed.

The main process cuts each step into jobs and gives them to whichever worker is free; a worker writes images and labels
into their places of the step's buffer and answers with what went wrong. Steps come out in order.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import traceback
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from vit_ipu.config import RunFailed, UserError

Entry = Tuple[int, int]
"""The epoch and the index of an image."""
Skipped = str
"""Which image could not be read, and why."""

JOB_SIZES = (8, 64)
"""The fewest and the most images of one job, which is otherwise a worker's share of a step: a message costs as much as
half an image."""
_JOBS_AHEAD = 2
"""Jobs that a worker holds, so that it need not wait for the next."""
_PARENT_POLL = 2.0
"""Seconds after which an idle worker looks whether the main process is still there."""
_GRACE = 5.0
"""Seconds that workers have to end before they are killed."""


@dataclass(frozen=True)
class Buffer:
    """Room for one host step: images (n, 3, S, S) and labels (n,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, count: int, image_size: int, dtype: torch.dtype, *, shared: bool) -> Buffer:
        images = torch.empty(count, 3, image_size, image_size, dtype=dtype)
        labels = torch.empty(count, dtype=torch.int64)
        if shared:
            try:
                images, labels = (tensor.share_memory_() for tensor in (images, labels))  # type: ignore[no-untyped-call]
            except RuntimeError as error:  # of torch, if /dev/shm is full
                raise RunFailed(
                    f"no shared memory for a host step of {count:,} images: make /dev/shm larger (a container's "
                    f"--shm-size), or set data.num_workers: 0 ({str(error).splitlines()[0]})"
                ) from None
        return cls(images, labels)


Fill = Callable[[Buffer, int, Sequence[Entry]], List[Skipped]]
"""Writes the images of the entries into the buffer from a place on; raises DataError for one that cannot be read."""


@dataclass
class _Step:
    """A host step under way."""

    slot: int
    count: int
    jobs_left: int
    answers: Dict[int, _Answer] = field(default_factory=dict)
    """By the place where each job starts, so that it does not matter which was done first."""

    @property
    def skipped(self) -> List[Skipped]:
        return [skipped for _, answer in sorted(self.answers.items()) for skipped in answer.skipped]

    @property
    def error(self) -> Optional[Exception]:
        return next((answer.error for _, answer in sorted(self.answers.items()) if answer.error is not None), None)


class _Answer(NamedTuple):
    """What a worker says of a job."""

    step: int
    start: int
    skipped: List[Skipped]
    error: Optional[Exception]


@dataclass(frozen=True)
class _Job:
    step: int
    slot: int
    start: int
    entries: Sequence[Entry]


@dataclass(frozen=True)
class Filled:
    """A whole host step; its tensors are written over once the next one is asked for."""

    images: Tensor
    labels: Tensor
    skipped: Sequence[Skipped]


def filled_here(steps: Iterable[List[Entry]], fill: Fill, new_buffer: Callable[[int], Buffer]) -> Iterator[Filled]:
    """The steps, loaded by this process, each in a buffer of its own."""
    for entries in steps:
        buffer = new_buffer(len(entries))
        skipped = fill(buffer, 0, entries)
        yield Filled(buffer.images, buffer.labels, skipped)


def filled_by_workers(
    steps: Iterable[List[Entry]], fill: Fill, buffers: Sequence[Buffer], num_workers: int
) -> Iterator[Filled]:
    """The steps, loaded by `num_workers` processes into the `buffers` in turn: all but one are filled ahead.

    Raises what a step met once it is that step's turn, and RunFailed as soon as a worker dies.
    """
    pool = _Pool(iter(steps), fill, buffers, num_workers)
    try:
        with _page_locked(buffers):
            yield from pool.steps()
    finally:
        pool.close()


@contextmanager
def _page_locked(buffers: Sequence[Buffer]) -> Iterator[None]:
    """In a process that uses a GPU, keeps the buffers in place meanwhile, so that the GPU fetches them by itself."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    locked: List[Tensor] = []
    try:
        for images in (buffer.images for buffer in buffers):
            if int(runtime.cudaHostRegister(images.data_ptr(), images.numpy().nbytes, 0)) == 0:
                locked.append(images)
            else:
                _forget_error()
        yield
    finally:
        for tensor in locked:
            runtime.cudaHostUnregister(tensor.data_ptr())


def _forget_error() -> None:
    """Lets a launch of no use have the error of a call that may fail, which CUDA would give to the next launch."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")


class _Pool:
    def __init__(self, steps: Iterator[List[Entry]], fill: Fill, buffers: Sequence[Buffer], num_workers: int) -> None:
        self._steps, self._buffers = steps, buffers
        self._free: Deque[int] = deque(range(len(buffers)))
        self._jobs: Deque[_Job] = deque()
        self._under_way: Dict[int, _Step] = {}
        self._next_step, self._exhausted = 0, False
        self._closing, self._closed = False, False
        self._failure: Optional[BaseException] = None
        self._changed = threading.Condition()
        self._wake_reader, self._wake_writer = multiprocessing.Pipe(duplex=False)
        self._workers = [_Worker(fill, buffers) for _ in range(num_workers)]
        self._thread = threading.Thread(target=self._serve, name="loader", daemon=True)
        self._thread.start()
        # A program that exits with its loader open: Python would ask the workers to end by SIGTERM, and wait for ever.
        self._at_exit = Finalize(None, self.close, exitpriority=0)

    # ------------------------------------------------------------------------------- the consumer's

    def steps(self) -> Iterator[Filled]:
        number = 0
        while True:
            step = self._wait_for(number)
            if step is None:
                return
            buffer = self._buffers[step.slot]
            yield Filled(buffer.images[: step.count], buffer.labels[: step.count], step.skipped)
            with self._changed:
                del self._under_way[number]
                self._free.append(step.slot)
            self._wake()
            number += 1

    def _wait_for(self, number: int) -> Optional[_Step]:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._ended(number) or self._is_done(number))
            if self._failure is not None:
                raise self._failure
            step = self._under_way.get(number)
        if step is not None and step.error is not None:
            raise step.error
        return step

    def _is_done(self, number: int) -> bool:
        return number in self._under_way and self._under_way[number].jobs_left == 0

    def _ended(self, number: int) -> bool:
        return self._exhausted and number >= self._next_step

    def close(self) -> None:
        """Ends the workers, and kills those that do not end by themselves. If it is interrupted, call it again."""
        if self._closed:
            return
        self._closing = True
        with suppress(OSError):  # of a pipe that is closed already
            self._wake()
        self._thread.join(_GRACE)  # it ends at once, unless a signal's exception left its lock locked
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()
        self._wake_reader.close()
        self._wake_writer.close()
        self._closed = True
        self._at_exit.cancel()

    def _wake(self) -> None:
        self._wake_writer.send_bytes(b"!")

    # -------------------------------------------------------------------------------- the thread's

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._give_jobs()
                answers = {worker.pipe: worker for worker in self._workers}
                sentinels = {worker.process.sentinel: worker for worker in self._workers}
                for ready in wait([self._wake_reader, *answers, *sentinels]):
                    if ready is self._wake_reader:
                        self._wake_reader.recv_bytes()
                    elif ready in answers:
                        self._take_answer(answers[ready])  # type: ignore[index]
                    else:
                        raise sentinels[ready].death()  # type: ignore[index]
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _give_jobs(self) -> None:
        for worker in sorted(self._workers, key=lambda worker: worker.jobs):
            while worker.jobs < _JOBS_AHEAD and (self._jobs or self._begin_step()):
                worker.give(self._jobs.popleft())

    def _begin_step(self) -> bool:
        """Cuts the next step into jobs, if there is one and room for it."""
        with self._changed:
            if self._exhausted or not self._free:
                return False
            entries = next(self._steps, None)
            if entries is None:
                self._exhausted = True
                self._changed.notify_all()
                return False
            size = min(max(-(-len(entries) // len(self._workers)), JOB_SIZES[0]), JOB_SIZES[1])
            slot, starts = self._free.popleft(), range(0, len(entries), size)
            self._under_way[self._next_step] = _Step(slot, len(entries), len(starts))
            for start in starts:
                self._jobs.append(_Job(self._next_step, slot, start, entries[start : start + size]))
            self._next_step += 1
        return True

    def _take_answer(self, worker: _Worker) -> None:
        answer = worker.answer()
        with self._changed:
            step = self._under_way[answer.step]
            step.jobs_left -= 1
            step.answers[answer.start] = answer
            if step.jobs_left == 0:
                self._changed.notify_all()


class _Worker:
    """The main process's side of a worker."""

    def __init__(self, fill: Fill, buffers: Sequence[Buffer]) -> None:
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in methods else None)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, fill, list(buffers), os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.jobs = 0

    def give(self, job: _Job) -> None:
        self.jobs += 1
        try:
            self.pipe.send(job)
        except OSError:
            raise self.death() from None

    def answer(self) -> _Answer:
        try:
            answer: _Answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self.death() from None
        self.jobs -= 1
        return answer

    def death(self) -> RunFailed:
        self.process.join(_GRACE)
        return RunFailed(
            f"a process that loads images died (exit code {self.process.exitcode}): out of memory? Lower "
            "data.num_workers, and see the system's log"
        )

    def ask_to_end(self) -> None:
        with suppress(OSError):  # it is gone
            self.pipe.send(None)

    def end(self) -> None:
        self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()  # it ignores SIGTERM, which is the main process's
            self.process.join()
        self.pipe.close()


# --------------------------------------------------------------------------------------- the worker


def _work(pipe: Connection, fill: Fill, buffers: Sequence[Buffer], parent: int) -> None:
    """Does jobs until it is told to end, or the main process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process's business; a worker ends when it does
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    gc.freeze()  # the main process's objects: to look at them would copy all their memory
    while True:
        while not pipe.poll(_PARENT_POLL):
            if os.getppid() != parent:
                return
        try:
            job: Any = pipe.recv()
            if job is None:
                return
            pipe.send(_Answer(job.step, job.start, *_do(job, fill, buffers)))
        except (EOFError, OSError):
            return


def _do(job: _Job, fill: Fill, buffers: Sequence[Buffer]) -> tuple[List[Skipped], Optional[Exception]]:
    try:
        return fill(buffers[job.slot], job.start, job.entries), None
    except UserError as error:
        return [], error
    except Exception as error:  # a traceback does not travel: its last line does
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        return [], RunFailed(f"a process that loads images failed: {text}")

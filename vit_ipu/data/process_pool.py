"""A pool of worker processes that ignore Ctrl-C and exit when the main process exits."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Callable, Generator, Iterator, List, Sequence, Set, Tuple

from vit_ipu.errors import RunFailed
from vit_ipu.signals import HeldSignals, end_with_parent, ignore_in_worker
from vit_ipu.text import counted, reason_of

_POLL_SECONDS = 0.5


def _nothing() -> None:
    pass


class Processes:
    """Runs tasks in the worker processes of a `processes` context."""

    def __init__(self, executor: ProcessPoolExecutor, count: int, signals: HeldSignals, remedy: str) -> None:
        self._executor, self._count, self._signals, self._remedy = executor, count, signals, remedy
        self._others = set(multiprocessing.active_children())
        self.started = True
        """False if a process could not be started, after which the executor cannot be shut down."""

    def finished(
        self, function: Callable[..., Any], tasks: Sequence[Tuple[Any, ...]], poll: Callable[[], None] = _nothing
    ) -> Generator[Tuple[int, Any], None, None]:
        """Yields the number of each task and the return value of `function` for the task, as the tasks finish.

        At least twice a second `poll` is called and held-back signals are delivered. Raises what `function` raises,
        and RunFailed if a process is killed or cannot be started.
        """
        pending: Set[Any] = set()
        try:
            futures = {self._submit(function, task): number for number, task in enumerate(tasks)}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                self._signals.let_through()
                poll()
                for future in done:
                    yield futures[future], future.result()
        except BrokenProcessPool:
            raise RunFailed(f"a process was killed, perhaps because memory ran out{self._remedy}") from None
        finally:
            for future in pending:
                future.cancel()

    def _submit(self, function: Callable[..., Any], task: Tuple[Any, ...]) -> Any:
        """Submits a task; the first task starts the processes. If one cannot be started, kills the others."""
        try:
            return self._executor.submit(_call, function, task)
        except BrokenProcessPool:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: a thread cannot be started
            self.started = False
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
                process.join()
            problem = _cannot_start(self._count, error, self._remedy)
        raise problem

    def in_order(self, function: Callable[..., Any], tasks: Sequence[Tuple[Any, ...]]) -> List[Any]:
        """Returns what `function` returns for each task, in the order of the tasks."""
        found = dict(self.finished(function, tasks))
        return [found[number] for number in range(len(tasks))]


@contextmanager
def processes(count: int, *, shared: Any = None, remedy: str = "") -> Iterator[Processes]:
    """Starts `count` processes for the tasks of the body.

    `shared`, if given, is sent to each process once and is the first argument of every function. `remedy` ends the
    error message if a process is killed, and tells the user what to do.
    """
    with HeldSignals() as signals:
        try:
            executor = ProcessPoolExecutor(count, multiprocessing.get_context(), initializer=_begin, initargs=(shared,))
        except OSError as error:
            raise _cannot_start(count, error, remedy) from None
        pool = Processes(executor, count, signals, remedy)
        try:
            yield pool
        finally:
            if pool.started:
                executor.shutdown()


def _cannot_start(count: int, error: Exception, remedy: str) -> RunFailed:
    return RunFailed(f"cannot start {counted(count, 'process', 'processes')}: {reason_of(error)}{remedy}")


# --------------------------------------------------------------------------------- in the processes

_shared: Tuple[Any, ...] = ()
"""The `shared` argument in this process: ProcessPoolExecutor can send an object once only through its initializer."""


def _begin(shared: Any) -> None:
    global _shared
    _shared = () if shared is None else (shared,)
    ignore_in_worker()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the executor ends processes by it once one was killed
    end_with_parent()


def _call(function: Callable[..., Any], task: Tuple[Any, ...]) -> Any:
    return function(*_shared, *task)

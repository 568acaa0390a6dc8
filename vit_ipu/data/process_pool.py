"""A pool of worker processes that ignore Ctrl-C and exit when the main process exits."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Callable, Generator, Iterator, List, Sequence, Tuple

from vit_ipu.errors import RunFailed
from vit_ipu.signals import HeldSignals

_POLL_SECONDS = 0.5


def _nothing() -> None:
    pass


class Processes:
    """Runs tasks in the worker processes of a `processes` context."""

    def __init__(self, executor: ProcessPoolExecutor, signals: HeldSignals, remedy: str) -> None:
        self._executor, self._signals, self._remedy = executor, signals, remedy

    def finished(
        self, function: Callable[..., Any], tasks: Sequence[Tuple[Any, ...]], poll: Callable[[], None] = _nothing
    ) -> Generator[Tuple[int, Any], None, None]:
        """Yields the number of each task and the return value of `function` for the task, as the tasks finish.

        At least twice a second `poll` is called and held-back signals are delivered. Raises what `function` raises,
        and RunFailed if a process is killed.
        """
        futures = {self._executor.submit(_call, function, task): number for number, task in enumerate(tasks)}
        pending = set(futures)
        try:
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
    with HeldSignals() as signals, ProcessPoolExecutor(
        count, multiprocessing.get_context(), initializer=_begin, initargs=(shared,)
    ) as executor:
        yield Processes(executor, signals, remedy)


# --------------------------------------------------------------------------------- in the processes

_shared: Tuple[Any, ...] = ()
"""The `shared` argument in this process: ProcessPoolExecutor can send an object once only through its initializer."""


def _begin(shared: Any) -> None:
    global _shared
    _shared = () if shared is None else (shared,)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(function: Callable[..., Any], task: Tuple[Any, ...]) -> Any:
    return function(*_shared, *task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

"""Tasks shared out to processes, which leave Ctrl-C to the main process and end with it.

A signal's exception may come between any two instructions: amid a lock's own code it would leave the lock locked, and
the processes waiting for ever. So signals are held back here, and come where they do no harm.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Callable, Dict, Generator, Iterator, List, Sequence, Tuple

from vit_ipu.config import RunFailed

_POLL_SECONDS = 0.5


def _nothing() -> None:
    pass


class Processes:
    """A number of processes, as long as `processes` lasts."""

    def __init__(self, executor: ProcessPoolExecutor, signals: _HeldSignals, remedy: str) -> None:
        self._executor, self._signals, self._remedy = executor, signals, remedy

    def finished(
        self, function: Callable[..., Any], tasks: Sequence[Tuple[Any, ...]], poll: Callable[[], None] = _nothing
    ) -> Generator[Tuple[int, Any], None, None]:
        """The number of each task and what `function` returns for it, as they finish.

        `poll` is called at least twice a second. Raises what the function raises, and RunFailed if a process is
        killed; signals are let through meanwhile.
        """
        futures = {self._executor.submit(function, *task): number for number, task in enumerate(tasks)}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                self._signals.let_through()
                poll()
                for future in done:
                    yield futures[future], future.result()
        except BrokenProcessPool:
            raise RunFailed("a process was killed, perhaps for want of memory" + self._remedy) from None
        finally:
            for future in pending:
                future.cancel()

    def in_order(self, function: Callable[..., Any], tasks: Sequence[Tuple[Any, ...]]) -> List[Any]:
        """What `function` returns for each task."""
        found = dict(self.finished(function, tasks))
        return [found[number] for number in range(len(tasks))]


@contextmanager
def processes(
    count: int, begin: Callable[..., None] = _nothing, *arguments: Any, remedy: str = ""
) -> Iterator[Processes]:
    """`count` processes, each of which calls `begin` first. `remedy`: what to do if one is killed."""
    with _HeldSignals() as signals, ProcessPoolExecutor(
        count, multiprocessing.get_context(), initializer=_begin, initargs=(begin, arguments)
    ) as executor:
        yield Processes(executor, signals, remedy)


def _begin(begin: Callable[..., None], arguments: Tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class _HeldSignals:
    """SIGINT and SIGTERM do nothing meanwhile until they are let through, or it ends without an error."""

    def __init__(self) -> None:
        self._previous: Dict[int, Any] = {}
        self._held: List[int] = []

    def __enter__(self) -> _HeldSignals:
        if threading.current_thread() is threading.main_thread():  # others never see a signal
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self.let_through()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _hold(self, number: int, frame: Any) -> None:
        self._held.append(number)

    def let_through(self) -> None:
        while self._held:
            number = self._held.pop(0)
            signal.signal(number, self._previous[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._hold)

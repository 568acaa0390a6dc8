"""Signals: stop the main process at a safe moment; worker processes leave signals to the main process.

An exception from a signal handler can be raised between any two instructions; inside a lock's own code it would leave
the lock locked. So signals only set a flag, or are held back, during work that they could damage.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, TypeVar

from vit_ipu.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended, by the convention of shells."""

Item = TypeVar("Item")


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the program by an exception, so that unfinished files are removed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))


def ignore_in_worker() -> None:
    """Ignores Ctrl-C and SIGTERM: terminals and schedulers send them to all processes, and the main process decides."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopSignal:
    """Context manager: Ctrl-C or SIGTERM requests a stop after the current host step; a second signal stops at once."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """Sets up the handlers' state; `notify` shows the user that the first signal has arrived."""
        self.requested = False
        self._notify = notify
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in STOPPING:
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # only the main thread may set handlers; another thread is stopped by its owner
                break
        return self

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def until_stopped(self, items: Iterable[Item], agree: Callable[[bool], bool] = bool) -> Iterator[Item]:
        """Yields the items until a stop is requested.

        `agree` makes several processes stop together: it tells whether a stop is requested in any of them.
        """
        for item in items:
            if agree(self.requested):
                return
            yield item

    def raise_if_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items. Raises Interrupted once a stop is requested."""
        for item in items:
            if self.requested:
                raise Interrupted
            yield item

    def _request(self, number: int, frame: Optional[FrameType]) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._notify("stopping after this host step; press Ctrl-C again to stop at once")


class HeldSignals:
    """Context manager: holds back Ctrl-C and SIGTERM until `let_through`, or until the body ends without an error."""

    def __init__(self) -> None:
        self._previous: Dict[int, Any] = {}
        self._held: List[int] = []

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():  # other threads never receive signals
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self.let_through()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def let_through(self) -> None:
        """Delivers the signals that have arrived to the handlers that were installed before."""
        while self._held:
            number = self._held.pop(0)
            signal.signal(number, self._previous[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._hold)

    def _hold(self, number: int, frame: Any) -> None:
        self._held.append(number)

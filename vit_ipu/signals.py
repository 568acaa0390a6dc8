"""Signals: what stops the main process and when, and what its worker processes leave to it.

A signal's exception may come between any two instructions: inside a lock's own code it would leave the lock locked.
So signals only set a flag, or are held back, while work is under way that they could damage.
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
"""Exit code of a program that SIGTERM has ended, as shells have it."""

Item = TypeVar("Item")


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the program as an exception would, so that what is half written is removed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))


def ignore_in_worker() -> None:
    """Leaves Ctrl-C and SIGTERM, which a terminal or a scheduler sends to all processes, to the main process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class StopSignal:
    """A context manager: Ctrl-C or SIGTERM requests a stop after the current host step; a second one stops at once."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """`notify` shows the user that the first signal has arrived."""
        self.requested = False
        self._notify = notify
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in STOPPING:
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # only the main thread may set handlers: whoever runs it stops this one
                break
        return self

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def until_stopped(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items until a stop is requested."""
        for item in items:
            if self.requested:
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
    """A context manager: holds Ctrl-C and SIGTERM back until let through, or until the body ends without an error."""

    def __init__(self) -> None:
        self._previous: Dict[int, Any] = {}
        self._held: List[int] = []

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():  # others never see a signal
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
        """Delivers the signals that have arrived to the handlers that were there before."""
        while self._held:
            number = self._held.pop(0)
            signal.signal(number, self._previous[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._hold)

    def _hold(self, number: int, frame: Any) -> None:
        self._held.append(number)

"""Writes one thing at a time in a thread, such as a checkpoint while training continues."""

from __future__ import annotations

import threading
from typing import Callable, Optional


class BackgroundWriter:
    """Runs one function at a time in a thread; an error of it is raised by the next call of a method."""

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None

    def start(self, write: Callable[[], None]) -> None:
        """Runs `write` in a thread, after the one before has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be started
            self._thread = None
            write()

    def wait(self) -> None:
        """Waits until nothing is being written. Raises the error of the write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self) -> None:
        """Raises the error of a write that has failed, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

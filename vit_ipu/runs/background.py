"""Writes one thing at a time in a thread, such as a checkpoint while training continues."""

from __future__ import annotations

from typing import Callable, Optional

from vit_ipu.threads import AwaitedThread


class BackgroundWriter:
    """Runs one function at a time in a thread; an error of it is raised by the next call of a method."""

    def __init__(self) -> None:
        self._prepared: Optional[Callable[[], None]] = None
        self._thread: Optional[AwaitedThread] = None
        self._error: Optional[BaseException] = None

    def prepare(self, write: Callable[[], None]) -> None:
        """Takes a function for `begin` to run, after the one before has ended."""
        self.wait()
        self._prepared = write

    def begin(self) -> None:
        """Runs the prepared function in a thread, if there is one."""
        write, self._prepared = self._prepared, None
        if write is None:
            return
        self._thread = AwaitedThread(self._run, write)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be started
            self._thread = None
            write()

    def start(self, write: Callable[[], None]) -> None:
        """Runs `write` in a thread, after the one before has ended."""
        self.prepare(write)
        self.begin()

    def join(self) -> None:
        """Waits until no function is running. Raises the error of the one that ran."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()

    def wait(self) -> None:
        """Runs a prepared function too, and waits until it has ended. Raises its error."""
        self.begin()
        self.join()

    @property
    def is_running(self) -> bool:
        """Whether a function has begun, and has not been waited for."""
        return self._thread is not None

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

"""Threads for which the main thread waits, also after Ctrl-C has interrupted its waiting."""

from __future__ import annotations

import threading
from typing import Any, Callable, Optional


class AwaitedThread(threading.Thread):
    """Daemon thread whose `join` can be repeated after an interrupt.

    Python 3.9 to 3.12 take a thread for ended once Ctrl-C has interrupted its `join`. The program then ends while the
    thread runs, which leaves files half written, or aborts in C++ code.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        super().__init__(target=function, args=arguments, daemon=True)
        self._has_ended = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._has_ended.set()

    def join(self, timeout: Optional[float] = None) -> None:
        if self._has_ended.wait(timeout):
            super().join(timeout)

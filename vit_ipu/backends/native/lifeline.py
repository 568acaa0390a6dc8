"""Notices that another process of a run has ended. A GPU would wait for its gradients forever.

The processes form a ring of connections. Each waits for a byte of the next one; without it, an end of the connection
is the end of the process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any, List, Tuple

import torch.distributed as dist

_GRACE = 10.0
"""Seconds in which a process may report the loss, before it is ended: its GPU may keep it from ending by itself."""
_PATIENCE = 60.0
"""Seconds in which processes connect, or say goodbye."""


class Lifeline:
    """A thread that waits until the next process says goodbye, or is lost."""

    def __init__(self, group: Any, grace: float = _GRACE) -> None:
        """Every process of the run must make one; they tell each other their addresses over `group`."""
        self._grace = grace
        self.is_lost = threading.Event()
        rank, count = dist.get_rank(), dist.get_world_size()
        with socket.create_server(("", 0)) as server:
            server.settimeout(_PATIENCE)
            addresses: List[Tuple[str, int]] = [("", 0)] * count
            dist.all_gather_object(addresses, (_own_address(), server.getsockname()[1]), group=group)
            self._next = socket.create_connection(addresses[(rank + 1) % count], timeout=_PATIENCE)
            self._previous, _ = server.accept()
        self._next.settimeout(None)
        self._thread = threading.Thread(target=self._wait_for_goodbye, name="lifeline", daemon=True)
        self._thread.start()

    def say_goodbye(self) -> None:
        """Tells the process before this one that this one ends as it should, and waits for the goodbye of the next."""
        with suppress(OSError):  # the process before this one has ended
            self._previous.sendall(b"goodbye")
        self._thread.join(_PATIENCE)
        self._previous.close()
        self._next.close()

    def _wait_for_goodbye(self) -> None:
        try:
            if self._next.recv(1):
                return
        except OSError:  # the connection was reset
            pass
        self.is_lost.set()
        time.sleep(self._grace)
        os._exit(1)


def _own_address() -> str:
    """Returns the address of this host from which it reaches the host of the first process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
        return str(probe.getsockname()[0])

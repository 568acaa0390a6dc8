"""Sends the jobs of DataLoader's workers before a call that stops all threads of this process, as PopTorch's calls do.

DataLoader issues jobs to queues, whose threads send them. A thread needs Python's global lock, which PopTorch keeps
during a host step (poptorch python/poptorch.cpp, `execute`): a job that has not been sent is loaded only after it.
"""

from __future__ import annotations

import time
from typing import Any

_PAUSE = 0.001
"""Seconds between two looks, in which the threads run."""
_LONGEST = 1.0
"""Seconds after which a thread is no longer waited for."""


def wait_until_sent(answers: Any) -> None:
    """Waits until the jobs that DataLoader's iterator has issued are on their way to the workers."""
    end = time.monotonic() + _LONGEST
    has_unsent = True
    while has_unsent and time.monotonic() < end:
        has_unsent = any(queue._buffer for queue in answers._index_queues)
        time.sleep(_PAUSE)  # also for the last job, which a thread has taken and is sending

"""Memory of tensors on a CPU: kept by the process when it is freed, as GPU allocators keep theirs."""

from __future__ import annotations

import ctypes
import sys

LARGEST_KEPT = 32 << 20
"""Bytes of the largest block that glibc can keep; it gives larger ones back to the system when they are freed, and
when they are allocated again each page costs a fault."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to LARGEST_KEPT bytes for the next allocation, instead of up to 128 KiB.

    The passes of an update allocate and free the same blocks again and again. Other C libraries stay as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _NEVER)

"""What a CPU computes by instructions of its own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}
"""Linux's names of instructions for bfloat16 on x86 and Arm."""


def lacks_bfloat16() -> bool:
    """Tells whether the processor is known to lack instructions for bfloat16."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, values = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return not _INSTRUCTIONS & set(values.split())
    return False

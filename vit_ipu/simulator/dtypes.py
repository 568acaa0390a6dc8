"""Types of tensors on an IPU, which has 32 bits in place of 64 (popart_compiler/source/Utils.cpp:141-151)."""

from __future__ import annotations

import torch


def in_32_bits(dtype: torch.dtype) -> torch.dtype:
    """Returns `dtype`, or the type of half its bits for one of 64."""
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(dtype, dtype)

"""Operations that PopTorch accepts and that an IPU computes otherwise than PyTorch does."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence

import torch

_INTEGER_ARITHMETIC = frozenset(
    f"aten::{name}{end}"
    for name in "add sub rsub mul pow sum prod cumsum cumprod bitwise_left_shift __lshift__".split()
    for end in ("", "_")
)
SMALLEST_EPS = 1e-6
"""Smallest eps of a normalisation that float16 keeps apart from 0 with some digits."""


def difference_of(name: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Optional[str]:
    """Returns what is different on an IPU about an operation, named without its overload; None if nothing is known."""
    dtype = getattr(args[0], "dtype", None) if args else None
    if name == "aten::gelu" and kwargs.get("approximate", "none") == "none":
        return "the exact GELU is computed in its tanh form on an IPU (ActivationOps.cpp:146-161)"
    if name == "aten::native_layer_norm" and dtype == torch.float16 and args[4] < SMALLEST_EPS:
        return f"eps {args[4]:g} underflows in float16"
    if name in _INTEGER_ARITHMETIC and dtype == torch.int64:
        return "int64 is int32 on an IPU: values beyond 2,147,483,647 are lost"
    return None

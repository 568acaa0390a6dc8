"""Dtypes of tensors on an IPU, which has 32-bit types in place of 64-bit types.

Source: popart_compiler/source/Utils.cpp:141-151.
"""

from __future__ import annotations

from typing import Iterable

import torch


def in_32_bits(dtype: torch.dtype) -> torch.dtype:
    """Returns the 32-bit type for a 64-bit `dtype`, else `dtype` itself."""
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(dtype, dtype)


def are_float64(tensors: Iterable[torch.Tensor]) -> bool:
    """Tells whether all floating-point tensors are float64, and there is at least one."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes == {torch.float64}

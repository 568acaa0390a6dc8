"""poptorch.testing: comparison of nested outputs (python/testing.py)."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["allclose"]


def allclose(ref: Any, other: Any) -> bool:
    """Tells whether tensors, or tuples and lists of tensors, have the same structure and close values."""
    if isinstance(ref, torch.Tensor):
        return torch.allclose(other, ref)
    same = isinstance(other, tuple if isinstance(ref, tuple) else list) and len(ref) == len(other)
    return same and all(allclose(r, o) for r, o in zip(ref, other))

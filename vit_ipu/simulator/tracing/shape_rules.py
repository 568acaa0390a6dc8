"""Shapes of results that PopTorch infers by rules of its own, because torch 2.0.1 lacks a Meta kernel.

Source: poptorch/source/dispatch_tracer/RegisterMetaOps.cpp.inc and TypeInferenceHandler.cpp. A rule takes the
arguments of an aten operation and returns meta tensors of the shapes and types that torch's CPU kernel returns.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor


def rule_of(name: str) -> Optional[Callable[..., Any]]:
    """Returns the rule of an operation, named with its overload, as in "aten::median.dim", if there is one."""
    return _RULES.get(name)


def with_dtype_of_out(name: str, kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the keyword arguments of a reduction, with the type of `out` where the type is not given.

    torch 2.0.1 otherwise infers int64 for integers and refuses an `out` of int32 (TypeInferenceHandler.cpp,
    makeReductionWorkaround).
    """
    out = kwargs.get("out")
    if name not in _REDUCTIONS_INTO_OUT or out is None or kwargs.get("dtype") is not None:
        return kwargs
    return {**kwargs, "dtype": out.dtype}


_REDUCTIONS_INTO_OUT = (
    "aten::sum.IntList_out",
    "aten::sum.out",
    "aten::prod.out",
    "aten::cumsum.out",
    "aten::cumprod.out",
)


def _nll_loss2d(scores: Tensor, target: Tensor, weight: Any, reduction: int, ignore_index: int) -> Tuple[Tensor, ...]:
    """Returns the loss and the total weight; `reduction` 0 means "none"."""
    return scores.new_empty(target.shape if reduction == 0 else ()), scores.new_empty(())


def _median(input: Tensor) -> Tensor:
    return input.new_empty(())


def _median_dim(input: Tensor, dim: int, keepdim: bool = False) -> Tuple[Tensor, Tensor]:
    shape = _reduced(input, [dim], keepdim)
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.long)


def _count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    dims = [dim] if isinstance(dim, int) else list(dim or range(input.dim()))
    return input.new_empty(_reduced(input, dims, False), dtype=torch.long)


def _reduced(input: Tensor, dims: Sequence[int], keepdim: bool) -> List[int]:
    """Returns the shape of `input` reduced over `dims`."""
    reduced = {dim % max(input.dim(), 1) for dim in dims}
    return [1 if dim in reduced else size for dim, size in enumerate(input.shape) if keepdim or dim not in reduced]


def _rrelu_with_noise(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(input)


def _weight_norm_interface(v: Tensor, g: Tensor, dim: int = 0) -> Tuple[Tensor, Tensor]:
    """Returns the weight and the norms that `v` is divided by."""
    return torch.empty_like(v), torch.empty_like(g)


def _max_pool3d(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tuple[Tensor, Tensor]:
    """Returns the maxima and their indices."""
    kernel_size, stride, padding, dilation = map(_three, (kernel_size, stride or kernel_size, padding, dilation))
    windows = zip(input.shape[-3:], kernel_size, stride, padding, dilation)
    shape = [*input.shape[:-3], *(_pooled(*window, ceil_mode=ceil_mode) for window in windows)]
    return input.new_empty(shape), input.new_empty(shape, dtype=torch.long)


def _three(sizes: Sequence[int]) -> List[int]:
    return list(sizes) * 3 if len(sizes) == 1 else list(sizes)


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil_mode: bool) -> int:
    """Returns the number of windows along a dimension; each window starts inside the image or its left padding."""
    free = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


_RULES: Dict[str, Callable[..., Any]] = {
    "aten::count_nonzero": _count_nonzero,
    "aten::count_nonzero.dim_IntList": _count_nonzero,
    "aten::max_pool3d_with_indices": _max_pool3d,
    "aten::median": _median,
    "aten::median.dim": _median_dim,
    "aten::nll_loss2d_forward": _nll_loss2d,
    "aten::rrelu_with_noise": _rrelu_with_noise,
    "aten::_weight_norm_interface": _weight_norm_interface,
}

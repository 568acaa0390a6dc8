"""Slices at positions that may change from run to run (python/ops.py).

The checks of PopTorch's compiler apply on the IPU; on the host, PopTorch does not make these checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import cpp_error, error


def dynamic_slice(tensor: Tensor, dim: int, start: Tensor, size: int, step: int) -> Tensor:
    """Returns every `step`-th of the `size` elements from `start` on, along `dim`.

    `start` may change from run to run. Raises Error on the IPU if `size` is not positive, or does not divide the
    dimension's length.
    """
    if not isinstance(tensor, Tensor):
        raise error(f"dynamic_slice must take a torch.tensor input. {type(tensor)} is not supported.")
    if not isinstance(dim, int):
        raise error("Dimension must be an integer.")
    if not isinstance(start, Tensor):
        raise error(f"Slice start argument to dynamic_slice must be a torch.tensor. {type(tensor)} is not supported.")
    if not isinstance(size, int):
        raise error("Size must be an integer.")
    if not isinstance(step, int):
        raise error("Step must be an integer.")
    if not context.current.on_ipu:
        first = _start_on_host(start)
        return tensor[(slice(None),) * (dim % tensor.dim()) + (slice(first, first + size, step),)]
    _check_size(size)
    if step < 1:
        raise cpp_error("Slicing step must be at least 1")
    if tensor.shape[dim] % size:
        raise cpp_error(
            f"The size of the slice ({size}) must be a factor of the slicing dimension ({tensor.shape[dim]})."
        )
    return tensor.index_select(dim, _positions(start, size, step))


def dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor, size: int) -> Tensor:
    """Returns `input` with the `size` elements from `start` on, along `dim`, replaced by `src`.

    Raises Error if the tensors differ in rank or dtype, and on the IPU if `size` is not positive.
    """
    if not isinstance(input, Tensor):
        raise error(f"dynamic_update must take a torch.tensor input. {type(input)} is not supported.")
    if not isinstance(dim, int):
        raise error("Dimension must be an integer.")
    if not isinstance(start, Tensor):
        raise error(f"Slice start argument to dynamic_update must be a torch.tensor. {type(start)} is not supported.")
    if not isinstance(src, Tensor):
        raise error(f"Src argument to dynamic_update must be a torch.tensor. {type(src)} is not supported.")
    if not isinstance(size, int):
        raise error("Size must be an integer.")
    if input.dim() != src.dim():
        raise error(f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})")
    dtype, src_dtype = context.current.device_dtype(input.dtype), context.current.device_dtype(src.dtype)
    if dtype != src_dtype:
        raise error(f"input and src tensor must have same dtype. ({dtype} vs {src_dtype})")
    if not context.current.on_ipu:
        first = _start_on_host(start)
        return torch.slice_scatter(input, src, dim, first, first + size)
    _check_size(size)
    replaced = list(input.shape)
    replaced[dim] = size
    if list(src.shape) != replaced:
        raise RuntimeError(
            f"Expected src to have a size equal to the slice of self. src size = {list(src.shape)}, slice size = "
            f"{replaced}"
        )
    along_dim = [1] * input.dim()
    along_dim[dim] = size
    index = _positions(start, size, 1).reshape(along_dim).expand(replaced)
    return input.scatter(dim, index, src.to(input.dtype))


def _start_on_host(start: Tensor) -> int:
    if start.dtype not in (torch.int64, torch.int32, torch.int16):
        raise cpp_error("Expected integer typed start tensor")
    return int(start.flatten()[0])


def _check_size(size: int) -> None:
    """Checks a slice's size as poptorch/source/popart_canonicalization/SliceOps.cpp:410-460 does."""
    if size == 0:
        raise cpp_error("The start and end of a slice must be different.")
    if size < 0:
        raise cpp_error("Taking a slice of a tensor with the end less than the start is not supported.")


def _positions(start: Tensor, size: int, step: int) -> Tensor:
    """Returns the indices that a slice of one dimension takes, without reading `start` on the host."""
    return start.reshape(()).to(torch.int64) + torch.arange(0, size, step)

"""GELU and its backward pass as Triton kernels, for bfloat16. Shapes: M rows, F columns.

The exact form takes the error function from formula 7.1.26 of Abramowitz and Stegun, whose error, 1.5e-7, is far below
bfloat16's rounding, and whose exponential the derivative needs too. The import fails without Triton, and with a torch
whose compiler cannot call kernels (before 2.4).
"""

# mypy: disable-error-code="untyped-decorator,import-untyped,import-not-found,no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

if not hasattr(torch.library, "custom_op"):
    raise ImportError(f"torch {torch.__version__} is too old")

_BLOCK = 2048
"""Elements of a program of the forward pass."""
_ROWS, _COLUMNS, _CHUNKS, _WARPS = 8, 256, 128, 4
"""Tile of one step of a program of the backward pass, and the number of programs that share the rows."""


@triton.jit
def _share_and_slope(x, TANH: tl.constexpr):
    """Returns the share of x that GELU lets through, and x times the derivative of the share."""
    if TANH:  # 0.5 * (1 + tanh(z)) is the logistic function of 2 * z
        share = tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
        slope = share * (1 - share) * 1.5957691216057308 * x * (1 + 0.134145 * x * x)
    else:
        bell = tl.exp2(-0.7213475204444817 * x * x)  # exp(-x * x / 2)
        t = 1 / (1 + 0.23164189 * tl.abs(x))  # 0.3275911 / sqrt(2)
        tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
        tail *= bell  # half of the complementary error function of abs(x) / sqrt(2)
        share = tl.where(x < 0, tail, 1 - tail)
        slope = x * 0.3989422804014327 * bell
    return share, slope


@triton.jit
def _forward_kernel(inputs, outputs, count, TANH: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(inputs + places, mask=places < count, other=0).to(tl.float32)
    share, _ = _share_and_slope(x, TANH)
    tl.store(outputs + places, (x * share).to(outputs.dtype.element_ty), mask=places < count)


@triton.jit
def _backward_kernel(
    inputs,
    gradient,
    outputs,
    of_inputs,
    sums,
    num_rows,
    num_columns,
    rows_of_chunk,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * rows_of_chunk
    last = tl.minimum(first + rows_of_chunk, num_rows)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        rows = start + tl.arange(0, ROWS)
        places = rows[:, None] * num_columns + columns[None, :]
        inside = (rows < last)[:, None] & (columns < num_columns)[None, :]
        x = tl.load(inputs + places, mask=inside, other=0).to(tl.float32)
        g = tl.load(gradient + places, mask=inside, other=0).to(tl.float32)
        share, slope = _share_and_slope(x, TANH)
        d = (g * (share + slope)).to(of_inputs.dtype.element_ty)
        tl.store(outputs + places, (x * share).to(outputs.dtype.element_ty), mask=inside)
        tl.store(of_inputs + places, d, mask=inside)
        total += d.to(tl.float32)
    tl.store(sums + tl.program_id(1) * num_columns + columns, tl.sum(total, axis=0), mask=columns < num_columns)


@torch.library.custom_op("vit_ipu::gelu", mutates_args=(), schema="(Tensor inputs, bool tanh) -> Tensor")
def gelu(inputs: Tensor, tanh: bool) -> Tensor:
    """Returns GELU of contiguous inputs, in its tanh form or in its exact one."""
    outputs = torch.empty_like(inputs)
    count = inputs.numel()
    _forward_kernel[(triton.cdiv(count, _BLOCK),)](inputs, outputs, count, TANH=tanh, BLOCK=_BLOCK, num_warps=4)
    return outputs


@gelu.register_fake
def _empty_gelu(inputs: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(inputs)


def gelu_backward(gradient: Tensor, inputs: Tensor, tanh: bool) -> Tuple[Tensor, Tensor, Tensor]:
    """Returns GELU's outputs (M, F), the gradient of its `inputs` (M, F), and the column sums (F,) of that gradient.

    `gradient` (M, F) is that of the outputs.
    """
    outputs, of_inputs, sums = _gelu_backward(gradient, inputs, tanh)
    return outputs, of_inputs, sums.sum(0).to(inputs.dtype)


@torch.library.custom_op(
    "vit_ipu::gelu_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor inputs, bool tanh) -> (Tensor, Tensor, Tensor)",
)
def _gelu_backward(gradient: Tensor, inputs: Tensor, tanh: bool) -> Tuple[Tensor, Tensor, Tensor]:
    num_rows, num_columns = inputs.shape
    outputs, of_inputs, sums = _empty_results(gradient, inputs, tanh)
    tensors = inputs.contiguous(), gradient.contiguous(), outputs, of_inputs, sums
    sizes = num_rows, num_columns, triton.cdiv(num_rows, _CHUNKS)
    grid = (triton.cdiv(num_columns, _COLUMNS), _CHUNKS)
    _backward_kernel[grid](*tensors, *sizes, TANH=tanh, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS)
    return outputs, of_inputs, sums


@_gelu_backward.register_fake
def _empty_results(gradient: Tensor, inputs: Tensor, tanh: bool) -> Tuple[Tensor, Tensor, Tensor]:
    sums = inputs.new_empty((_CHUNKS, inputs.shape[1]), dtype=torch.float32)
    return torch.empty_like(inputs), torch.empty_like(inputs), sums

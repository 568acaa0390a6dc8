"""Markers for PopTorch's compiler: the loss, tensors to keep, memory proportions, split products (python/ops.py).

Markers do not change the computation. The simulator makes the compiler's checks while a model is traced.
"""

from __future__ import annotations

from typing import Any, List

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.enums import MatMulSerializationMode
from vit_ipu.simulator.errors import error


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Marks `x`, reduced by "sum", "mean" or "none", as the loss to differentiate."""
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    loss = x.sum() if reduction == "sum" else x.mean() if reduction == "mean" else x.clone()
    context.current.mark_loss(loss)
    return loss


def nop(tensor: Tensor) -> Tensor:
    """Returns the tensor."""
    if not isinstance(tensor, Tensor):
        raise error(f"nop must take a torch.tensor argument. {type(tensor)} is not supported.")
    return tensor.view_as(tensor)


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Marks tensors to keep for the backward pass rather than compute again; returns the tensors."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        return type(tensors[0])(recomputationCheckpoint(*tensors[0]))
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    kept: List[Tensor] = [tensor.view_as(tensor) for tensor in tensors]
    if context.current.trace is not None:
        context.current.trace.checkpoint(kept)
    return kept[0] if len(kept) == 1 else tuple(kept)


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """Sets the proportion of memory, in (0, 1], that the preceding operation may use; returns the tensor."""
    if not isinstance(tensor, Tensor):
        raise error(f"You may only set available memory for torch.tensor values. {type(tensor)} is not supported.")
    proportion = float(available_memory_proportion)
    if context.current.trace is not None and not 0.0 < proportion <= 1.0:
        raise error("availableMemoryProportion must be in (0,1]", "popart_exception")
    return tensor.view_as(tensor)


def serializedMatMul(
    lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> Tensor:
    """Returns the matrix product of `lhs` and `rhs`, which an IPU computes in `factor` parts.

    Raises Error if `factor` does not divide the dimension that `mode` names (popart's serializematmuls.cpp).
    """
    assert isinstance(keep_precision, bool)
    assert isinstance(factor, int)
    assert isinstance(mode, MatMulSerializationMode)
    product = torch.matmul(lhs, rhs)
    if context.current.trace is not None and mode != MatMulSerializationMode.Disabled:
        _check_factor(lhs, rhs, mode, factor)
    return product


def _check_factor(lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int) -> None:
    of_rhs = mode == MatMulSerializationMode.OutputChannels
    name, matrix = ("RHS", rhs) if of_rhs else ("LHS", lhs)
    if matrix.dim() < 2:
        raise error(
            f"{name} Input: must have rank 2 or 3 for matmul serialization. \nPlease squeeze or reshape for "
            "serialization.",
            "popart_exception",
        )
    dim = matrix.dim() - (2 if mode == MatMulSerializationMode.InputChannels else 1)
    if factor < 1 or matrix.shape[dim] % factor:
        raise error(
            f"{name} input, shape {list(matrix.shape)}, index {dim} must be divisible by factor {factor}",
            "popart_exception",
        )

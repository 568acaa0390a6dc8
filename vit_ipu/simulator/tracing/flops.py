"""Floating-point operations of one aten operation, counted from shapes; a multiply-add counts as two.

Only products and convolutions are counted, as in torch.utils.flop_counter. The backward pass costs as much as the
forward pass for each operand that requires a gradient.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Sequence, Tuple

from torch import Tensor


class Flops(NamedTuple):
    """The FLOPs of an operation in the forward pass and in the backward pass."""

    forward: int
    backward: int


def flops_of(name: str, args: Sequence[Any], result: Any) -> Flops:
    """Counts the FLOPs of an operation; `name` has no overload, as in "aten::addmm"."""
    if name not in _OPERANDS or not isinstance(result, Tensor):
        return Flops(0, 0)
    operands = [args[position] for position in _OPERANDS[name]]
    count = _count_convolution if name == "aten::convolution" else _count_product
    forward = 2 * count(args, operands, result)
    return Flops(forward, forward * sum(operand.requires_grad for operand in operands))


def _count_product(args: Sequence[Any], operands: Sequence[Tensor], result: Tensor) -> int:
    """Counts the multiply-adds of (..., m, k) times (..., k, n): each element of the result sums over k."""
    return result.numel() * operands[0].shape[-1]


def _count_convolution(args: Sequence[Any], operands: Sequence[Tensor], result: Tensor) -> int:
    """Counts the multiply-adds of a convolution: each element of the result sums over a filter.

    In a transposed convolution, each element of the input spreads over a filter.
    """
    image, weight = operands
    transposed = bool(args[6])
    return (image if transposed else result).numel() * weight[0].numel()


# Positions of the two factors among an operation's arguments.
_OPERANDS: Dict[str, Tuple[int, int]] = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::mv": (0, 1),
    "aten::dot": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::addmv": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::baddbmm_": (1, 2),
    "aten::addbmm": (1, 2),
    "aten::convolution": (0, 1),
}

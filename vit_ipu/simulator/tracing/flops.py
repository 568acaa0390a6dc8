"""Floating-point operations of one aten operation, counted from shapes; a multiplication with its addition is two.

Only products and convolutions are counted, as torch.utils.flop_counter does. The backward pass costs as much again
for each operand that requires a gradient.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Sequence, Tuple

from torch import Tensor


class Flops(NamedTuple):
    """Of the forward pass, and of the backward pass that belongs to it."""

    forward: int
    backward: int


def flops_of(name: str, args: Sequence[Any], result: Any) -> Flops:
    """`name` as in "aten::addmm", without an overload; `args` and `result` are the operation's."""
    if name not in _OPERANDS or not isinstance(result, Tensor):
        return Flops(0, 0)
    operands = [args[position] for position in _OPERANDS[name]]
    count = _of_convolution if name == "aten::convolution" else _of_product
    forward = 2 * count(args, operands, result)
    return Flops(forward, forward * sum(operand.requires_grad for operand in operands))


def _of_product(args: Sequence[Any], operands: Sequence[Tensor], result: Tensor) -> int:
    """(..., m, k) times (..., k, n): each element of the result sums over k."""
    return result.numel() * operands[0].shape[-1]


def _of_convolution(args: Sequence[Any], operands: Sequence[Tensor], result: Tensor) -> int:
    """Each element of the result sums over a filter; transposed, each element of the input spreads over one."""
    image, weight = operands
    transposed = bool(args[6])
    return (image if transposed else result).numel() * weight[0].numel()


# Where the two factors stand among an operation's arguments.
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

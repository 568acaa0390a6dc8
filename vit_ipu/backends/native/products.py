"""Linear layers by matrix products whose algorithms are chosen by timing. Shapes: M rows, K inputs, N outputs."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.backends.native import cublaslt

if not hasattr(torch.library, "custom_op"):
    raise ImportError(f"torch {torch.__version__} is too old")


@torch.library.custom_op(
    "vit_ipu::product",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor? bias, bool transpose_a, bool transpose_b) -> Tensor",
)
def _product(a: Tensor, b: Tensor, bias: Optional[Tensor], transpose_a: bool, transpose_b: bool) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    return cublaslt.product(a.t() if transpose_a else a, b.t() if transpose_b else b, bias)


@_product.register_fake
def _empty_product(a: Tensor, b: Tensor, bias: Optional[Tensor], transpose_a: bool, transpose_b: bool) -> Tensor:
    return a.new_empty(a.shape[1 if transpose_a else 0], b.shape[0 if transpose_b else 1])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns (M, N) of inputs (M, K), weights (N, K) and a bias (N,)."""
    return _product(x, weight, bias, False, True)


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Returns the gradient (M, K) of the inputs, by that of the outputs (M, N) and weights (N, K)."""
    return _product(gradient, weight, None, False, False)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient (N, K) of the weights, by that of the outputs (M, N) and the inputs (M, K)."""
    return _product(gradient, x, None, True, False)


class TunedLinear(nn.Linear):
    """A linear layer with bias whose products use the fastest algorithms."""

    def forward(self, x: Tensor) -> Tensor:
        y = _LinearFunction.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y.reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return input_gradient(gradient, weight), weight_gradient(gradient, x), gradient.sum(0)

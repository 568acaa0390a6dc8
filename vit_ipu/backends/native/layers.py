"""Layers of a ViT as CPUs and GPUs compute them fastest, and the one place where they are chosen.

Each has the parameters, the values and the gradients of the plain layer in model.py. Shapes: B batch, T tokens,
M = B x T, N patches, P patch side, D width, F MLP width, H heads.
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ipu.config import Config, ModelConfig
from vit_ipu.model import ATTENTION, MLP, Block, FusedAttention, Layers, PatchEmbed

try:
    from vit_ipu.backends.native import cublaslt
    from vit_ipu.backends.native.attention_kernel import CHANNELS, MOST_TOKENS, attention, attention_backward
    from vit_ipu.backends.native.gelu_kernels import gelu, gelu_backward
    from vit_ipu.backends.native.products import TunedLinear, input_gradient, linear, weight_gradient
except ImportError:  # a torch without Triton, or too old
    _HAS_KERNELS = False
else:
    _HAS_KERNELS = cublaslt.is_available()


def layers_for(config: Config, device: torch.device) -> Layers:
    """Returns the layers of a config's model on a device."""
    kernel = config.model.attention
    if _takes_kernels(config, device) and kernel != "explicit":
        return Layers(MatrixPatchEmbed, PackedAttention, RecomputingMLP, ClassTokenBlock)
    return Layers(MatrixPatchEmbed, ATTENTION["fused" if kernel == "auto" else kernel], MLP, ClassTokenBlock)


def _takes_kernels(config: Config, device: torch.device) -> bool:
    computes_in_bfloat16 = config.precision.resolve_compute(device.type) == "bfloat16"
    is_aligned = config.model.width % 8 == 0 and config.model.mlp_width % 8 == 0  # to 16 bytes, for cuBLASLt
    return _HAS_KERNELS and device.type == "cuda" and computes_in_bfloat16 and is_aligned


class MatrixPatchEmbed(PatchEmbed):
    """Patch embedding as one matrix product, instead of a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, side, _ = images.shape
        patch = self.proj.kernel_size[0]
        grid = side // patch
        patches = images.reshape(batch, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, grid * grid, -1)  # (B, N, 3 * P * P), in the order of the weights
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ClassTokenBlock(Block):
    """The last block, which computes only what the class token's output needs: (B, T, D) to (B, 1, D).

    Keys and values are needed of all tokens, but queries, projection and MLP only of the class token. At ViT-B/16, that
    saves 7 % of a model's operations.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(x[:, :1] + self.drop_path1(self._attended(self.norm1(x))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor) -> Tensor:
        """Returns the output (B, 1, D) of the attention layer for the class token, from x (B, T, D)."""
        batch, tokens, width = x.shape
        attention, weight, bias = self.attn, self.attn.qkv.weight, self.attn.qkv.bias
        query = F.linear(x[:, :1], weight[:width], bias[:width]).reshape(batch, 1, attention.num_heads, -1)
        pair = F.linear(x, weight[width:], bias[width:]).reshape(batch, tokens, 2, attention.num_heads, -1)
        key, value = pair.unbind(2)
        mixed = attention.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))  # (B, H, 1, D/H)
        return attention.proj_drop(attention.proj(mixed.transpose(1, 2).reshape(batch, 1, width)))  # type: ignore[no-any-return]


class PackedAttention(FusedAttention):
    """Fused attention whose gradients of query, key and value are written into one tensor."""

    linear = TunedLinear if _HAS_KERNELS else nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        fits = config.num_tokens <= MOST_TOKENS and config.width // config.num_heads in CHANNELS
        self.is_packed = fits and config.attention_dropout == 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_packed:
            return super().forward(x)
        mixed = _AttentionFunction.apply(x, self.qkv.weight, self.qkv.bias, self.num_heads, self.scale)  # type: ignore[no-untyped-call]
        return self.proj_drop(self.proj(mixed))  # type: ignore[no-any-return]


class _AttentionFunction(torch.autograd.Function):
    """A linear layer, with weights (3 * D, D) and a bias (3 * D,), and attention, from (B, T, D) to (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:  # type: ignore[override]
        batch, tokens, _ = x.shape
        qkv = linear(x.flatten(0, 1), weight, bias).reshape(batch, tokens, 3, num_heads, -1)
        outputs, log_sums = attention(qkv, scale)
        ctx.save_for_backward(x, weight, qkv, outputs, log_sums)
        ctx.scale = scale
        return outputs.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        x, weight, qkv, outputs, log_sums = ctx.saved_tensors
        of_qkv, of_bias = attention_backward(gradient.reshape(outputs.shape), qkv, outputs, log_sums, ctx.scale)
        rows = of_qkv.reshape(x.shape[0] * x.shape[1], -1)  # (M, 3 * D)
        of_x = input_gradient(rows, weight).reshape(x.shape)
        return of_x, weight_gradient(rows, x.flatten(0, 1)), of_bias.sum(0).flatten().to(x.dtype), None, None


class RecomputingMLP(MLP):
    """An MLP that keeps only its inputs to GELU for the backward pass, in which one kernel does all but the products.

    The kernel reads GELU's inputs and gradients once, and writes GELU's outputs again, the gradients of its inputs,
    and their sums, which are the gradient of the first bias.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.has_dropout = config.dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        if self.has_dropout:
            return super().forward(x)
        fc1, fc2, tanh = self.fc1, self.fc2, self.act.approximate == "tanh"
        y = _MLPFunction.apply(x.flatten(0, 1), fc1.weight, fc1.bias, fc2.weight, fc2.bias, tanh)  # type: ignore[no-untyped-call]
        return y.reshape(x.shape)  # type: ignore[no-any-return]


class _MLPFunction(torch.autograd.Function):
    """MLP of inputs (M, D), weights (F, D) and (D, F), and biases (F,) and (D,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, tanh: bool) -> Tensor:  # type: ignore[override]
        hidden = linear(x, w1, b1)
        ctx.save_for_backward(x, hidden, w1, w2)
        ctx.tanh = tanh
        return linear(gelu(hidden, tanh), w2, b2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        x, hidden, w1, w2 = ctx.saved_tensors
        outputs, of_hidden, of_b1 = gelu_backward(input_gradient(gradient, w2), hidden, ctx.tanh)
        of_w2, of_w1 = weight_gradient(gradient, outputs), weight_gradient(of_hidden, x)
        return input_gradient(of_hidden, w1), of_w1, of_b1, of_w2, gradient.sum(0), None

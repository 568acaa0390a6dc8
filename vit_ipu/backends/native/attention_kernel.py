"""The backward pass of attention over at most 256 tokens as one Triton kernel, each of whose programs holds all keys.

It writes the gradients of query, key and value once, where they lie in one tensor, with their sums over tokens, which
give the gradient of a bias. Shapes: B batch, T tokens, H heads, C channels of a head. The import fails without Triton,
and with a torch whose compiler cannot call kernels (before 2.4).
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

MOST_TOKENS = 256
CHANNELS = (16, 32, 64)
"""Channels of a head that the kernels take."""
_LOG2_E = tl.constexpr(1.4426950408889634)
_PROGRAM = {"ROWS": 32, "num_warps": 8, "num_stages": 3}
"""Queries that a program takes at a time, its warps, and the depth of its pipeline."""


@triton.jit
def _kernel(
    qkv,
    outputs,
    log_sums,
    gradient,
    of_qkv,
    of_bias,
    scale,
    num_tokens,
    H: tl.constexpr,
    C: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
):
    image, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    keys, channels = tl.arange(0, KEYS), tl.arange(0, C)
    of_query = image * num_tokens * (3 * H * C) + head * C + channels[None, :]
    of_key = of_query + H * C + keys[:, None] * (3 * H * C)
    exists = (keys < num_tokens)[:, None]
    k = tl.load(qkv + of_key, mask=exists, other=0)  # (KEYS, C)
    v = tl.load(qkv + of_key + H * C, mask=exists, other=0)
    dk, dv = tl.zeros((KEYS, C), tl.float32), tl.zeros((KEYS, C), tl.float32)
    sum_dq = tl.zeros((ROWS, C), tl.float32)
    for start in range(0, num_tokens, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < num_tokens)[:, None]
        q = tl.load(qkv + of_query + rows[:, None] * (3 * H * C), mask=inside, other=0)  # (ROWS, C)
        place = (image * num_tokens + rows[:, None]) * (H * C) + head * C + channels[None, :]
        g = tl.load(gradient + place, mask=inside, other=0)
        delta = tl.sum(g.to(tl.float32) * tl.load(outputs + place, mask=inside, other=0).to(tl.float32), axis=1)
        log_sum = tl.load(log_sums + tl.program_id(0) * num_tokens + rows, mask=rows < num_tokens, other=float("inf"))
        logits = tl.dot(k, tl.trans(q)) * (scale * _LOG2_E)  # (KEYS, ROWS), transposed as all that follow
        weights = tl.where(exists, tl.exp2(logits - _LOG2_E * log_sum[None, :]), 0.0)
        dv += tl.dot(weights.to(g.dtype), g)
        of_logits = (weights * (tl.dot(v, tl.trans(g)) - delta[None, :])).to(q.dtype)
        dk += tl.dot(of_logits, q)
        dq = tl.dot(tl.trans(of_logits), k) * scale
        sum_dq += dq
        tl.store(of_qkv + of_query + rows[:, None] * (3 * H * C), dq.to(q.dtype), mask=inside)
    dk *= scale
    tl.store(of_qkv + of_key, dk.to(k.dtype), mask=exists)
    tl.store(of_qkv + of_key + H * C, dv.to(k.dtype), mask=exists)
    sums = of_bias + image * (3 * H * C) + head * C + channels
    tl.store(sums, tl.sum(sum_dq, axis=0))
    tl.store(sums + H * C, tl.sum(dk, axis=0))
    tl.store(sums + 2 * H * C, tl.sum(dv, axis=0))


def attention(qkv: Tensor, scale: float) -> Tuple[Tensor, Tensor]:
    """Returns the outputs (B, T, H, C) of attention, and the logarithms of the sums (B, H, T) of its softmax.

    `qkv` (B, T, 3, H, C) has query, key and value. The kernels are torch's own; cuDNN's is the fastest on a Hopper.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in qkv.unbind(2))
    if torch.cuda.get_device_capability(qkv.device) >= (9, 0):
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, False, False, scale=scale
        )
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    outputs, log_sums = found[:2]
    return outputs.transpose(1, 2), log_sums.reshape(log_sums.shape[:3])


@torch.library.custom_op(
    "vit_ipu::attention_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor qkv, Tensor outputs, Tensor log_sums, float scale) -> (Tensor, Tensor)",
)
def attention_backward(
    gradient: Tensor, qkv: Tensor, outputs: Tensor, log_sums: Tensor, scale: float
) -> Tuple[Tensor, Tensor]:
    """Returns the gradient of `qkv`, and its sums (B, 3, H, C) over tokens in float32, by that of the outputs."""
    of_qkv, of_bias = _empty_gradients(gradient, qkv, outputs, log_sums, scale)
    batch, tokens, _, heads, channels = qkv.shape
    keys = max(16, triton.next_power_of_2(tokens))
    given = (tensor.contiguous() for tensor in (qkv, outputs, log_sums, gradient))
    _kernel[(batch * heads,)](*given, of_qkv, of_bias, scale, tokens, heads, channels, keys, **_PROGRAM)
    return of_qkv, of_bias


@attention_backward.register_fake
def _empty_gradients(
    gradient: Tensor, qkv: Tensor, outputs: Tensor, log_sums: Tensor, scale: float
) -> Tuple[Tensor, Tensor]:
    batch, _, _, heads, channels = qkv.shape
    return torch.empty_like(qkv), qkv.new_empty(batch, 3, heads, channels, dtype=torch.float32)

"""Converts tensor layouts that torch's modules do not use: Flax's kernels, stacked blocks, LayerScale.

D width, H heads, P patch side.
"""

from __future__ import annotations

from typing import Dict, Optional

from torch import Tensor

from vit_ipu.errors import CheckpointError

Tensors = Dict[str, Tensor]

_MAX_DEPTH = 1000
_STACKED, _BLOCK = "/encoderblock/", "/encoderblock_{}/"
_FLAX_RANKS = {"patch_embed.proj.weight": 4, "cls_token": 3, "pos_embed": 3}


def split_stacked_blocks(tensors: Tensors, source: str) -> Tensors:
    """Splits big_vision's scanned blocks, (depth, ...) in one tensor, into one tensor for each block."""
    result: Tensors = {}
    for key, tensor in tensors.items():
        if _STACKED not in key:
            result[key] = tensor
        elif tensor.numel() == 0 or tensor.ndim == 0 or len(tensor) > _MAX_DEPTH:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(tensor.shape)}, which is not one tensor for each block"
            )
        else:
            for index, part in enumerate(tensor):
                result[key.replace(_STACKED, _BLOCK.format(index))] = part
    return result


def flax_heads(tensors: Tensors, source: str) -> Optional[int]:
    """Returns the number of attention heads of the kernels (D, H, D/H). Raises CheckpointError if blocks differ."""
    heads = {part.shape[-2] for key, part in tensors.items() if key.endswith("/query/kernel") and part.ndim >= 3}
    if len(heads) > 1:
        raise CheckpointError(f"{source}: its blocks have {' and '.join(map(str, heads))} attention heads")
    return heads.pop() if heads else None


def from_flax(name: str, tensor: Tensor, key: str, source: str) -> Tensor:
    """Returns a Flax tensor in torch's layout.

    Kernels (in, out) are transposed, (P, P, 3, D) becomes (D, 3, P, P), and heads are flattened.
    """
    expected = _flax_rank(name)
    if tensor.ndim != expected:
        raise CheckpointError(
            f"{source}: {key} has shape {tuple(tensor.shape)} where {expected} dimensions are expected"
        )
    if name == "patch_embed.proj.weight":
        return tensor.permute(3, 2, 0, 1)
    if name.endswith("attn.qkv.weight"):  # (D, H, D/H)
        return tensor.flatten(1).T
    if name.endswith("attn.qkv.bias"):  # (H, D/H)
        return tensor.flatten()
    if name.endswith("attn.proj.weight"):  # (H, D/H, D)
        return tensor.flatten(0, 1).T
    return tensor.T if expected == 2 else tensor


def to_flax(name: str, tensor: Tensor, num_heads: int) -> Tensor:
    """Inverts `from_flax`; for attn.qkv, `tensor` is one third."""
    if name == "patch_embed.proj.weight":
        return tensor.permute(2, 3, 1, 0)
    if name.endswith("attn.qkv.weight"):
        return tensor.T.reshape(tensor.shape[1], num_heads, -1)
    if name.endswith("attn.qkv.bias"):
        return tensor.reshape(num_heads, -1)
    if name.endswith("attn.proj.weight"):
        return tensor.T.reshape(num_heads, -1, tensor.shape[0])
    return tensor.T if _flax_rank(name) == 2 else tensor


def _flax_rank(name: str) -> int:
    if name in _FLAX_RANKS:
        return _FLAX_RANKS[name]
    if name.endswith(("attn.qkv.weight", "attn.proj.weight")):
        return 3
    if name.endswith("attn.qkv.bias"):
        return 2
    return 2 if name.endswith(".weight") and "norm" not in name else 1


def fold_layer_scale(state: Tensors, source: str) -> Tensors:
    """Multiplies LayerScale (arXiv:2103.17239) into the linear layer before it, for a plain block to compute the same.

    gamma * (W x + b) = (gamma W) x + (gamma b): each product is rounded once.
    """
    gammas = {name: tensor for name, tensor in state.items() if name.endswith(".gamma")}
    result = {name: tensor for name, tensor in state.items() if name not in gammas}
    for name, gamma in gammas.items():
        block, layer = name[: -len(".ls1.gamma")], "attn.proj" if ".ls1." in name else "mlp.fc2"
        for leaf in ("weight", "bias"):
            target = f"{block}.{layer}.{leaf}"
            if target not in result or gamma.shape != result[target].shape[:1]:
                found = f"has shape {tuple(result[target].shape)}" if target in result else "is missing"
                raise CheckpointError(f"{source}: {name} has shape {tuple(gamma.shape)} but {target} {found}")
            tensor = result[target]
            result[target] = tensor * gamma.to(tensor.dtype).reshape([-1] + [1] * (tensor.ndim - 1))
    return result

"""Resizes position embeddings to another grid of patches, by the rule of the library that the weights come from.

Their shape is (1, 1 + n, D): a class token, which is kept, and a square grid of n patches. All rules work in float32.
"""

from __future__ import annotations

import math
from typing import Any, Dict

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ipu.errors import CheckpointError

RULES: Dict[str, Dict[str, Any]] = {
    "timm": {"mode": "bicubic", "antialias": True},  # timm.layers.resample_abs_pos_embed
    "huggingface": {"mode": "bicubic", "align_corners": False},  # ViTEmbeddings.interpolate_pos_encoding
    "mmpretrain": {"mode": "bicubic", "align_corners": False},  # resize_pos_embed, in its load hook
    "torchvision": {"mode": "bicubic", "align_corners": True},  # interpolate_embeddings
    # vit_jax/checkpoint.py zooms with scipy.ndimage.zoom(order=1), which keeps the corners: the same interpolation.
    "google": {"mode": "bilinear", "align_corners": True},
}
"""Arguments of torch's `interpolate` by the origin of the weights. graphcore/examples lacks a rule and gets timm's."""


def resize_pos_embed(pos_embed: Tensor, num_patches: int, rule: str = "timm") -> Tensor:
    """Resizes position embeddings (1, 1 + n, D) to a square grid of `num_patches`, and keeps their dtype."""
    old, new = math.isqrt(pos_embed.shape[1] - 1), math.isqrt(num_patches)
    if old == new:
        return pos_embed
    class_token, grid = pos_embed[:, :1], pos_embed[:, 1:]
    grid = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), **RULES[rule])
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(pos_embed.dtype)
    return torch.cat([class_token, grid], dim=1)


def with_class_position(pos_embed: Tensor, source: str) -> Tensor:
    """Adds a zero position for the class token if the library adds positions to patches only.

    big_vision does so, and timm with `no_embed_class`. Raises CheckpointError if the grid of patches is not square.
    """
    tokens = pos_embed.shape[1] if pos_embed.ndim == 3 else 0
    if tokens > 1 and math.isqrt(tokens - 1) ** 2 == tokens - 1:
        return pos_embed
    if tokens > 0 and math.isqrt(tokens) ** 2 == tokens:
        return torch.cat([torch.zeros_like(pos_embed[:, :1]), pos_embed], dim=1)
    raise CheckpointError(
        f"{source}: the position embeddings have shape {tuple(pos_embed.shape)}, not that of a class token and a "
        "square grid of patches"
    )

"""Weights to start from (model.init): read, resized to the model's position grid, and given a new head.

This version reads timm's naming, which is also ours, from safetensors files and checkpoint folders.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vit_ipu.checkpoints.run_state import CheckpointError, find_checkpoint, load_weights, unmatched


def load_init(source: str, own: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The state dict to start from: `own`, a fresh model's, with the weights of `source` wherever they belong.

    Position embeddings are resized to the model's grid. A head for another number of classes keeps its fresh
    value, which is zero (arXiv:2010.11929, section 3.2); so does a representation layer that `source` lacks, and
    one that the model lacks is dropped. Raises CheckpointError for anything else that does not fit.
    """
    weights = _read(source)
    if "pos_embed" in weights:
        _check_square_grid(weights["pos_embed"], source)
        weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], own["pos_embed"].shape[1] - 1)
    if "head.weight" in weights and weights["head.weight"].shape != own["head.weight"].shape:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    missing, extra = unmatched(list(own), list(weights))
    missing = [name for name in missing if not name.startswith(("head.", "pre_logits."))]
    extra = [name for name in extra if not name.startswith("pre_logits.")]
    if missing or extra:
        raise CheckpointError(
            "model.init {}: not this model's weights in timm's naming: {}".format(
                source, "no {}".format(missing[0]) if missing else "{} is unknown".format(extra[0])
            )
        )
    return {name: _fitting(name, weights.get(name, tensor), tensor, source) for name, tensor in own.items()}


def resize_pos_embed(pos_embed: Tensor, num_patches: int) -> Tensor:
    """Position embeddings (1, 1 + n, D) of a class token and a square grid, resized to `num_patches` patches.

    Bicubic with antialiasing in float32, the class token's kept: timm's `resample_abs_pos_embed`.
    """
    old, new = math.isqrt(pos_embed.shape[1] - 1), math.isqrt(num_patches)
    if old == new:
        return pos_embed
    class_token, grid = pos_embed[:, :1], pos_embed[:, 1:]
    grid = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1).to(pos_embed.dtype)
    return torch.cat([class_token, grid], dim=1)


def _check_square_grid(pos_embed: Tensor, source: str) -> None:
    patches = pos_embed.shape[1] - 1 if pos_embed.ndim == 3 else 0
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise CheckpointError(
            "model.init {}: pos_embed has shape {}, not that of a class token and a square grid of patches".format(
                source, tuple(pos_embed.shape)
            )
        )


def _read(source: str) -> Dict[str, Tensor]:
    path = Path(source).expanduser()
    if path.is_dir():
        return load_weights(find_checkpoint(path))
    if path.suffix != ".safetensors":
        raise CheckpointError(
            "model.init {}: expected a checkpoint folder, a run folder or a .safetensors file".format(source)
        )
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError("model.init {}: cannot read it: {}".format(source, error)) from None


def _fitting(name: str, tensor: Tensor, own: Tensor, source: str) -> Tensor:
    if tensor.shape != own.shape:
        raise CheckpointError(
            "model.init {}: {} has shape {} but the model needs {}: is it another variant?".format(
                source, name, tuple(tensor.shape), tuple(own.shape)
            )
        )
    return tensor.to(own.dtype)

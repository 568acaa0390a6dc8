"""Checks that tensors by timm's names are a complete ViT: no tensor is missing, and the shapes fit together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, Tuple

from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.namings import Naming

_REMEDY = "give the weights of a complete ViT"


def with_zero_biases(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Adds zero biases if the attention adds no bias to query, key and value (qkv_bias=False)."""
    if any(name.endswith(".attn.qkv.bias") for name in tensors):
        return tensors
    kernels = {name: part for name, part in tensors.items() if name.endswith(".attn.qkv.weight")}
    return dict(
        tensors, **{name[: -len("weight")] + "bias": part.new_zeros(len(part)) for name, part in kernels.items()}
    )


_MEASURED = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
"""Tensors that determine the widths of a model, and the number of dimensions of each tensor."""


def require_whole(tensors: Dict[str, Tensor], naming: Naming, source: str) -> None:
    """Raises CheckpointError if a tensor is missing, or has a shape that does not fit the other tensors."""
    for name, rank in _MEASURED.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: {_their_name(name, naming)} is missing: {_REMEDY}")
        if tensors[name].ndim != rank or 0 in tensors[name].shape:
            raise CheckpointError(
                f"{source}: {_their_name(name, naming)} has shape {tuple(tensors[name].shape)} where {rank} dimensions "
                "are expected"
            )
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    expected = expected_shapes(tensors, depth)
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: {_their_name(name, naming)} is missing: {_REMEDY}")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{source}: {_their_name(name, naming)} has shape {tuple(tensors[name].shape)} where the other tensors "
                f"ask for {shape}"
            )


def measured_shape(tensors: Dict[str, Tensor]) -> Dict[str, int]:
    """Returns what the tensors of a complete ViT show: width, depth, MLP width, patch and image size, classes."""
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    return {
        "width": tensors["cls_token"].shape[-1],
        "depth": sum(name.endswith(".norm1.weight") for name in tensors),
        "mlp_width": len(tensors["blocks.0.mlp.fc1.bias"]),
        "patch_size": patch,
        "image_size": math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch,
        "num_classes": len(tensors["head.weight"]) if "head.weight" in tensors else 0,
    }


def require_stated_shape(tensors: Dict[str, Tensor], stated: Dict[str, int], path: Path) -> None:
    """Raises CheckpointError if the shape that the file at `path` states is not that of the tensors.

    Weights without a head may belong to a model that has one.
    """
    for name, found in measured_shape(tensors).items():
        if stated.get(name, found) != found and (name, found) != ("num_classes", 0):
            raise CheckpointError(
                f"{path}: it describes a model of {name} {stated[name]}, but the tensors have {found}: correct the "
                "file, or fetch the one that belongs to these weights"
            )


def expected_shapes(tensors: Dict[str, Tensor], depth: int) -> Dict[str, Tuple[int, ...]]:
    """Returns the shape of each tensor of a ViT, given its class token, grid, patch, MLP and head."""
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    mlp = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    shapes: Dict[str, Tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tensors["pos_embed"].shape[1], width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        block = {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (mlp, width),
            "mlp.fc2": (width, mlp),
        }
        for layer, shape in block.items():
            _add(shapes, f"blocks.{index}.{layer}", shape)
    _add(shapes, "norm", (width,))
    features = width
    if any(name.startswith("pre_logits.") for name in tensors):
        features = len(tensors.get("pre_logits.fc.weight", tensors["cls_token"]))
        _add(shapes, "pre_logits.fc", (features, width))
    if "head.weight" in tensors or "head.bias" in tensors:
        _add(shapes, "head", (len(tensors.get("head.weight", tensors.get("head.bias"))), features))  # type: ignore[arg-type]
    return shapes


def _add(shapes: Dict[str, Tuple[int, ...]], layer: str, shape: Tuple[int, ...]) -> None:
    shapes[layer + ".weight"], shapes[layer + ".bias"] = shape, shape[:1]


def _their_name(name: str, naming: Naming) -> str:
    theirs = naming.theirs(name)
    return name if theirs is None else theirs if isinstance(theirs, str) else theirs[0]

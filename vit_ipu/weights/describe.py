"""Describes the model that weights belong to: its shape, its preprocessing and the names of its classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Dict, Optional, Tuple

from pydantic import ValidationError

from vit_ipu.config import ModelConfig
from vit_ipu.errors import CheckpointError
from vit_ipu.weights.native import ModelDescription, Preprocessing
from vit_ipu.weights.read import Weights


def without_head(weights: Weights) -> Weights:
    """Returns the weights without the layers after the last norm."""
    kept = {name: part for name, part in weights.tensors.items() if not name.startswith(("head.", "pre_logits."))}
    return replace(weights, tensors=kept)


def model_config(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> ModelConfig:
    """Returns the config of the model that the weights belong to, with one class if the weights lack a head.

    Raises CheckpointError if the number of attention heads is not known, or a head is needed but missing.
    """
    stated = weights.metadata.num_heads
    if num_heads is not None and stated is not None and num_heads != stated:
        raise CheckpointError(f"{weights.source} has {stated} attention heads, not {num_heads}")
    if weights.description is not None:
        return weights.description.model
    tensors = weights.tensors
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    mlp = len(tensors["blocks.0.mlp.fc1.bias"])
    heads = num_heads or stated or _usual_heads(width, weights.source)
    values: Dict[str, Any] = {
        "width": width,
        "depth": sum(name.endswith(".norm1.weight") for name in tensors),
        "num_heads": heads,
        "patch_size": patch,
        "mlp_ratio": mlp / width if int(width * (mlp / width)) == mlp else (mlp + 0.5) / width,
        "image_size": math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch,
        "num_classes": max(weights.num_classes, 1),
        "representation_size": len(tensors["pre_logits.fc.bias"]) if "pre_logits.fc.bias" in tensors else None,
        "gelu": weights.metadata.gelu,
        "layer_norm_eps": weights.metadata.layer_norm_eps,
    }
    if not headless:
        require_classifier(weights)
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Value error, ", "")
        raise CheckpointError(f"{weights.source}: {reason}") from None


def describe(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> ModelDescription:
    """Returns the description in a checkpoint of this program, or one that is derived from foreign weights."""
    model, metadata = model_config(weights, num_heads=num_heads, headless=headless), weights.metadata
    if weights.description is not None:
        return weights.description
    pixels = Preprocessing(
        metadata.mean, metadata.std, metadata.eval_resize, metadata.interpolation, metadata.eval_crop
    )
    return ModelDescription(model, pixels, class_names(weights), problem_type=metadata.problem_type)


def require_classifier(weights: Weights) -> None:
    """Raises CheckpointError if the weights lack a classification head."""
    if weights.num_classes > 0:
        return
    found = "it has no classification head"
    if weights.metadata.embedding is not None:
        found = (
            "it is the image tower of a model of images and text (LiT), whose head is not a classifier but a "
            f"projection to {weights.metadata.embedding} numbers"
        )
    raise CheckpointError(
        f"{weights.source}: {found}: fine-tune it first, with --set model.init={weights.source}, or convert its "
        "--features"
    )


def class_names(weights: Weights) -> Tuple[str, ...]:
    """Returns the name of each class of the head; `class NUMBER` if the checkpoint does not name the classes."""
    if weights.description is not None:
        return weights.description.classes
    if len(weights.metadata.classes) == weights.num_classes:
        return weights.metadata.classes
    return tuple(f"class {label}" for label in range(weights.num_classes))


_USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Attention heads by width, of the published variants from Ti to G."""


def _usual_heads(width: int, source: str) -> int:
    if width not in _USUAL_HEADS:
        raise CheckpointError(
            f"{source}: the number of attention heads is not known for width {width}: give it with vit-ipu convert "
            "--num-heads"
        )
    return _USUAL_HEADS[width]

"""Whole weights: a run of ours, or a published ViT in any of the namings of `formats`, with what is known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from pydantic import ValidationError
from torch import Tensor

from vit_ipu.config import Config, ConfigError, ModelConfig
from vit_ipu.config_file import parse_config
from vit_ipu.runs.checkpoint import (
    CheckpointError,
    Description,
    find_checkpoint,
    is_own,
    load_description,
    load_weights,
)
from vit_ipu.weights.fetch import locate, weight_file
from vit_ipu.weights.layouts import flax_heads
from vit_ipu.weights.metadata import Facts, facts_beside, facts_of
from vit_ipu.weights.namings import NAMINGS, TIMM, Naming, recognise, to_ours
from vit_ipu.weights.position_embeddings import with_class_position
from vit_ipu.weights.tensor_files import read_tensors

Say = Callable[[str], None]


def _nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class Weights:
    """A whole ViT, by our names."""

    source: str
    """What the user wrote."""
    path: Path
    """The file, or our checkpoint, that was read."""
    origin: str
    """`native`, or the naming that it came in."""
    tensors: Dict[str, Tensor]
    facts: Facts
    description: Optional[Description] = None
    """Of a checkpoint of ours."""

    @property
    def resize_rule(self) -> str:
        return TIMM.resize if self.origin == "native" else NAMINGS[self.origin].resize

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 without one."""
        return len(self.tensors["head.weight"]) if "head.weight" in self.tensors else 0


def read_weights(
    source: str, *, sha256: Optional[str] = None, trust_pickle: bool = False, say: Say = _nothing
) -> Weights:
    """Reads a run, a checkpoint, a file, a folder, `hf-hub:owner/name` or an https address.

    `sha256` is that of the file; `trust_pickle` lets a torch with known holes read a pickle. Raises CheckpointError,
    one line, if it is missing, damaged, foreign or no plain ViT.
    """
    located = locate(source, sha256=sha256, say=say)
    path = located.path
    if path.is_dir() and is_own(path):
        checkpoint = find_checkpoint(path)
        description = load_description(checkpoint)
        return Weights(source, checkpoint, "native", load_weights(checkpoint), facts_of(description), description)
    file = weight_file(path) if path.is_dir() else path
    stored = read_tensors(file, trust_pickle=trust_pickle or located.verified)
    naming = recognise(stored.tensors, source)
    tensors = with_zero_biases(to_ours(stored.tensors, naming, source))
    if "pos_embed" in tensors:
        tensors["pos_embed"] = with_class_position(tensors["pos_embed"], source)
    require_whole(tensors, naming, source)
    facts = facts_beside(file, naming, stored.metadata)
    if naming.flax:
        facts = replace(facts, num_heads=flax_heads(stored.tensors, source))
    return Weights(source, file, naming.name, tensors, facts)


# ------------------------------------------------------------------------------------- completeness


def with_zero_biases(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The same; attention that adds no bias to query, key and value (qkv_bias=False) adds zero."""
    if any(name.endswith(".attn.qkv.bias") for name in tensors):
        return tensors
    kernels = {name: part for name, part in tensors.items() if name.endswith(".attn.qkv.weight")}
    return dict(
        tensors, **{name[: -len("weight")] + "bias": part.new_zeros(len(part)) for name, part in kernels.items()}
    )


_MEASURED = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
"""The tensors that say how wide a model is, and how many dimensions they have."""


def require_whole(tensors: Dict[str, Tensor], naming: Naming, source: str) -> None:
    """Raises CheckpointError if a tensor is missing, or has a shape that does not fit the others."""
    for name, rank in _MEASURED.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: {_their_name(name, naming)} is missing")
        if tensors[name].ndim != rank or 0 in tensors[name].shape:
            raise CheckpointError(
                f"{source}: {_their_name(name, naming)} has shape {tuple(tensors[name].shape)} where {rank} dimensions "
                "are expected"
            )
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    expected = expected_shapes(tensors, depth)
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: {_their_name(name, naming)} is missing")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{source}: {_their_name(name, naming)} has shape {tuple(tensors[name].shape)} where the other tensors "
                f"ask for {shape}"
            )


def expected_shapes(tensors: Dict[str, Tensor], depth: int) -> Dict[str, Tuple[int, ...]]:
    """The shape that each tensor of a ViT has, given its class token, grid, patch, MLP and head."""
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


# ------------------------------------------------------------------------------------- as a model


def without_head(weights: Weights) -> Weights:
    """The same without what comes after the last norm."""
    kept = {name: part for name, part in weights.tensors.items() if not name.startswith(("head.", "pre_logits."))}
    return replace(weights, tensors=kept)


def model_config(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> ModelConfig:
    """The config of the model that the weights are of; one class stands for the head that is not there.

    Raises CheckpointError if the heads of attention cannot be told, or there is no head where one is needed.
    """
    stated = weights.facts.num_heads
    if num_heads is not None and stated is not None and num_heads != stated:
        raise CheckpointError(f"{weights.source} has {stated} attention heads, not {num_heads}")
    if weights.description is not None:
        return weights.description.config.model
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
        "gelu": weights.facts.gelu,
        "layer_norm_eps": weights.facts.layer_norm_eps,
    }
    if weights.num_classes == 0 and not headless:
        raise CheckpointError(
            f"{weights.source}: it has no classification head: fine-tune it first, with --set "
            f"model.init={weights.source}"
        )
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Value error, ", "")
        raise CheckpointError(f"{weights.source}: {reason}") from None


def describe(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> Description:
    """Config and class names: those of our checkpoint, or what can be told of a foreign one.

    The sections that say how to train are then placeholders, and the number of training images is 0.
    """
    model, facts = model_config(weights, num_heads=num_heads, headless=headless), weights.facts
    if weights.description is not None:
        return weights.description
    data: Dict[str, Any] = {"source": "imagefolder", "mean": list(facts.mean), "std": list(facts.std)}
    data.update({"eval_resize": facts.eval_resize, "interpolation": facts.interpolation})
    values: Dict[str, Any] = {
        "model": model.model_dump(mode="json"),
        "data": data,
        "pipeline": {"global_batch_size": 1, "micro_batch_size": 1},
        "optim": {"optimizer": "sgd", "learning_rate": 0.01},
        "run": {"updates": 1},
    }
    try:
        config: Config = parse_config(values)
    except ConfigError as error:
        raise CheckpointError(f"{weights.source}: {error}") from None
    return Description(config, class_names(weights), 0)


def class_names(weights: Weights) -> Tuple[str, ...]:
    """The name of each class of the head; numbered where nothing names them."""
    if weights.description is not None:
        return weights.description.classes
    if len(weights.facts.classes) == weights.num_classes:
        return weights.facts.classes
    return tuple(f"class {label}" for label in range(weights.num_classes))


_USUAL_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Attention heads by width, of the variants from Ti to G that are published."""


def _usual_heads(width: int, source: str) -> int:
    if width not in _USUAL_HEADS:
        raise CheckpointError(
            f"{source}: the number of attention heads cannot be told from width {width}: give it by vit-ipu convert "
            "--num-heads"
        )
    return _USUAL_HEADS[width]

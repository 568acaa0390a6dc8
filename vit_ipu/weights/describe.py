"""Describes the model that weights belong to: its shape, its preprocessing and the names of its classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from pydantic import ValidationError

from vit_ipu.config import DataConfig, ModelConfig
from vit_ipu.errors import CheckpointError
from vit_ipu.text import plain_numbers
from vit_ipu.variants import VARIANTS
from vit_ipu.weights.completeness import measured_shape
from vit_ipu.weights.native import ModelDescription, Preprocessing
from vit_ipu.weights.read import Weights
from vit_ipu.weights.timm_models import PLAIN_VITS


def without_head(weights: Weights) -> Weights:
    """Returns the weights without the layers after the last norm."""
    kept = {name: part for name, part in weights.tensors.items() if not name.startswith(("head.", "pre_logits."))}
    return replace(weights, tensors=kept)


def with_heads(weights: Weights, num_heads: Optional[int]) -> Weights:
    """Returns the weights with the number of attention heads that the user states; None states nothing.

    Raises CheckpointError if the checkpoint states another number.
    """
    if num_heads is None:
        return weights
    metadata, description = weights.metadata, weights.description
    if metadata.states("num_heads") and metadata.num_heads != num_heads:
        raise CheckpointError(
            f"{weights.source} has {metadata.num_heads} attention heads, not {num_heads}: leave out --num-heads"
        )
    metadata = metadata.knowing(num_heads=num_heads)
    if description is not None:
        model = _checked_model(dict(description.model.model_dump(), num_heads=num_heads), weights.source)
        description = replace(description, model=model, assumed=metadata.assumed)
    return replace(weights, metadata=metadata, description=description)


def model_config(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> ModelConfig:
    """Returns the config of the model that the weights belong to, with one class if the weights lack a head.

    Raises CheckpointError if the number of attention heads is not known, or a head is needed but missing.
    """
    weights = with_heads(weights, num_heads)
    if weights.description is not None:
        return weights.description.model
    tensors, shape = weights.tensors, measured_shape(weights.tensors)
    width, mlp = shape["width"], shape["mlp_width"]
    values: Dict[str, Any] = {
        "width": width,
        "depth": shape["depth"],
        "num_heads": weights.metadata.num_heads or _usual_heads(shape, weights.source),
        "patch_size": shape["patch_size"],
        "mlp_ratio": mlp / width if int(width * (mlp / width)) == mlp else (mlp + 0.5) / width,
        "image_size": shape["image_size"],
        "num_classes": max(shape["num_classes"], 1),
        "representation_size": len(tensors["pre_logits.fc.bias"]) if "pre_logits.fc.bias" in tensors else None,
        "gelu": weights.metadata.gelu,
        "layer_norm_eps": weights.metadata.layer_norm_eps,
    }
    if not headless:
        require_classifier(weights)
    return _checked_model(values, weights.source)


def _checked_model(values: Dict[str, Any], source: str) -> ModelConfig:
    try:
        return ModelConfig(**values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Value error, ", "")
        raise CheckpointError(f"{source}: {reason}") from None


def describe(weights: Weights, *, num_heads: Optional[int] = None, headless: bool = False) -> ModelDescription:
    """Returns the description in a checkpoint of this program, or one that is derived from foreign weights."""
    weights = with_heads(weights, num_heads)
    model, metadata = model_config(weights, headless=headless), weights.metadata
    if weights.description is not None:
        return weights.description
    pixels = Preprocessing(
        metadata.mean,
        metadata.std,
        metadata.eval_resize,
        metadata.interpolation,
        metadata.eval_crop,
        metadata.background,
    )
    return ModelDescription(
        model, pixels, class_names(weights), problem_type=metadata.problem_type, assumed=metadata.assumed
    )


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


# ------------------------------------------------------------------------------- what had to be assumed


def assumptions(weights: Weights, description: ModelDescription) -> List[str]:
    """Returns the note on the settings that had to be assumed, with their values; no note if all are stated."""
    values = assumed_values(description)
    remedy = "; --num-heads states the heads" if "num_heads" in description.assumed else ""
    return [f"assumed for {weights.source}{_by_default(weights)}: {values}{remedy}"] if values else []


def _by_default(weights: Weights) -> str:
    """Returns whose defaults the assumed settings are; empty if a file of this program does not say it."""
    library = weights.metadata.assumed_from
    return f", as {library} has them by default" if library else ""


def assumed_values(description: ModelDescription) -> str:
    """Returns the settings that had to be assumed, with their values; empty if all are stated."""
    return ", ".join(setting_texts(description.assumed, description.model, description.preprocessing))


def assumptions_of_config(weights: Weights, model: ModelConfig, data: DataConfig) -> List[str]:
    """Returns the note on the settings that the weights do not state, and that are therefore the config's."""
    pixels = Preprocessing(data.mean, data.std, data.eval_resize, data.interpolation, data.eval_crop)
    assumed = weights.metadata.assumed
    if not assumed:
        return []
    values = ", ".join(setting_texts(assumed, model, pixels))
    unstated = f"{weights.source} does not state these settings"
    return [f"{unstated}, so the config's are used: {values}; if one is wrong, set {_keys(assumed)}"]


def assumptions_in_new_config(weights: Weights, description: ModelDescription, config: Path) -> List[str]:
    """Returns the note on the settings that are assumed in a config that is being written to a file."""
    values, keys = assumed_values(description), _keys(description.assumed)
    if not values:
        return []
    unstated = f"{weights.source} does not state these settings, so they are assumed{_by_default(weights)}"
    return [f"{unstated}: {values}; if one is wrong, set it in {config}: {keys}"]


def _keys(assumed: Tuple[str, ...]) -> str:
    """Returns the keys of a config for the settings that it can state; no key is for the pooling."""
    sections = {name: "model" if name in ("num_heads", "gelu", "layer_norm_eps") else "data" for name in assumed}
    return ", ".join(f"{section}.{name}" for name, section in sections.items() if name != "pooling")


def setting_texts(names: Sequence[str], model: ModelConfig, pixels: Preprocessing) -> List[str]:
    """Returns the value of each of these settings, of native.ASSUMABLE, in words."""
    is_square = pixels.eval_crop == "squash"
    texts = {
        "num_heads": f"{model.num_heads} attention heads",
        "gelu": f"{model.gelu} GELU",
        "layer_norm_eps": f"layer norm epsilon {model.layer_norm_eps:g}",
        "pooling": "a head on the class token",
        "mean": f"pixel mean {plain_numbers(pixels.mean)}",
        "std": f"pixel deviation {plain_numbers(pixels.std)}",
        "eval_crop": "a squash into a square" if is_square else "a centre crop",
        "eval_resize": f"a resize of {'both sides' if is_square else 'the short side'} to "
        f"{pixels.eval_resize or model.image_size}",
        "interpolation": f"{pixels.interpolation} resizing",
    }
    return [texts[name] for name in names]


_OTHERS = {(384, 12, 1536, 16): 12}
"""Attention heads of published ViTs that the tables lack, by width, depth, MLP width and patch: MoCo v3's ViT-S/16."""


def _usual_heads(shape: Dict[str, int], source: str) -> int:
    """Returns the attention heads that all published ViTs of this shape have.

    Raises CheckpointError if there is no such ViT, or if such ViTs have different numbers of heads.
    """
    found = published_heads(shape)
    if len(found) == 1:
        return found[0]
    numbers = " or ".join(map(str, found))
    which = f"of which published ViTs have {numbers}" if found else "which is not that of a published ViT"
    raise CheckpointError(
        f"{source}: the number of attention heads is not known for width {shape['width']}, depth {shape['depth']}, "
        f"MLP width {shape['mlp_width']} and patch size {shape['patch_size']}, {which}: state it with --num-heads"
    )


def published_heads(shape: Dict[str, int]) -> Tuple[int, ...]:
    """Returns the numbers of attention heads that published ViTs of this shape have, each once.

    `shape` is that of `measured_shape`. The ViTs are the variants, without the one for tests, timm's, and MoCo v3's.
    """
    known = [
        ((v["width"], v["depth"], 4 * v["width"], v["patch_size"]), v["num_heads"])
        for name, v in VARIANTS.items()
        if name != "vit_test"
    ]
    known += [((m.width, m.depth, int(m.width * m.mlp_ratio), m.patch_size), m.num_heads) for m in PLAIN_VITS.values()]
    wanted = (shape["width"], shape["depth"], shape["mlp_width"], shape["patch_size"])
    return tuple(sorted({heads for other, heads in [*known, *_OTHERS.items()] if other == wanted}))

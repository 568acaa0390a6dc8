"""What a checkpoint's other files and its naming say of its model: heads, epsilon, GELU, classes, pixels."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from vit_ipu.checkpoints.formats import Naming
from vit_ipu.checkpoints.run_state import CheckpointError, Description

Triple = Tuple[float, float, float]

HIDDEN_ACT = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
"""transformers' names of activations: ours."""
RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters: our names."""


@dataclass(frozen=True)
class Facts:
    """What tensors do not show; without other files, what is usual for the naming."""

    layer_norm_eps: float
    gelu: str
    mean: Triple
    std: Triple
    num_heads: Optional[int] = None
    classes: Tuple[str, ...] = ()
    eval_resize: Optional[int] = None
    """Short side in pixels before the centre crop; the image size when None."""
    interpolation: str = "bilinear"
    stated: bool = False
    """Whether the checkpoint's own files say so, rather than what is usual."""


def facts_of(description: Description) -> Facts:
    """Those of a checkpoint of ours."""
    model, data = description.config.model, description.config.data
    return Facts(
        layer_norm_eps=model.layer_norm_eps,
        gelu=model.gelu,
        mean=data.mean,
        std=data.std,
        num_heads=model.num_heads,
        classes=description.classes,
        eval_resize=data.eval_resize,
        interpolation=data.interpolation,
        stated=True,
    )


def facts_beside(file: Path, naming: Naming, metadata: Dict[str, Any]) -> Facts:
    """From the naming, what a .pth holds beside its tensors, and config.json and preprocessor_config.json beside it.

    Raises CheckpointError if one of them cannot be read, or says that it is not a ViT that we can compute.
    """
    facts = Facts(naming.layer_norm_eps, naming.gelu, naming.mean, naming.std)
    try:
        config = _read_json(file.parent / "config.json") if _is_of_a_folder(file) else {}
        if "pretrained_cfg" in config or "architecture" in config:
            return _from_timm(facts, config)
        if config.get("model_type") is not None:
            pixels = _read_json(file.parent / "preprocessor_config.json")
            return _from_huggingface_pixels(_from_huggingface(facts, config, file), pixels)
        return replace(facts, classes=_mmpretrain_classes(metadata))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError("{}: damaged: {}".format(file.parent / "config.json", error)) from None


def _is_of_a_folder(file: Path) -> bool:
    """Whether the files beside it are about it."""
    return file.name.startswith(("model.safetensors", "pytorch_model.bin"))


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot read {}: {}".format(path, error)) from None
    if not isinstance(values, dict):
        raise CheckpointError("cannot read {}: it is not a JSON object".format(path))
    return values


def _from_timm(facts: Facts, config: Dict[str, Any]) -> Facts:
    """A folder of timm's, as on the Hugging Face Hub."""
    pixels = config.get("pretrained_cfg") or {}
    found: Dict[str, Any] = {"stated": True}
    if "mean" in pixels and "std" in pixels:
        found.update(mean=_triple(pixels["mean"]), std=_triple(pixels["std"]))
    if pixels.get("interpolation") in RESAMPLE.values():
        found["interpolation"] = pixels["interpolation"]
    if "crop_pct" in pixels and "input_size" in pixels:
        found["eval_resize"] = math.floor(pixels["input_size"][-1] / pixels["crop_pct"])
    names = config.get("label_names") or pixels.get("label_names") or ()
    return replace(facts, classes=tuple(str(name) for name in names), **found)


def _from_huggingface(facts: Facts, config: Dict[str, Any], file: Path) -> Facts:
    if config["model_type"] != "vit":
        raise CheckpointError(
            "{}: its model_type is {}, not vit".format(file.parent / "config.json", config["model_type"])
        )
    activation = config.get("hidden_act", "gelu")
    if activation not in HIDDEN_ACT:
        raise CheckpointError(
            "{}: its hidden_act {} is none of {}".format(
                file.parent / "config.json", activation, ", ".join(sorted(HIDDEN_ACT))
            )
        )
    names = config.get("id2label") or {}
    return replace(
        facts,
        num_heads=int(config.get("num_attention_heads", 12)),
        layer_norm_eps=float(config.get("layer_norm_eps", facts.layer_norm_eps)),
        gelu=HIDDEN_ACT[activation],
        stated=True,
        classes=tuple(str(names[str(label)]) for label in range(len(names))),
    )


def _from_huggingface_pixels(facts: Facts, pixels: Dict[str, Any]) -> Facts:
    found: Dict[str, Any] = {}
    if "image_mean" in pixels and "image_std" in pixels:
        found.update(mean=_triple(pixels["image_mean"]), std=_triple(pixels["image_std"]))
    if pixels.get("resample") in RESAMPLE:
        found["interpolation"] = RESAMPLE[pixels["resample"]]
    size = pixels.get("size")
    if pixels.get("do_center_crop") and isinstance(size, dict) and "shortest_edge" in size:
        found["eval_resize"] = int(size["shortest_edge"])
    return replace(facts, **found)


def _mmpretrain_classes(metadata: Dict[str, Any]) -> Tuple[str, ...]:
    meta = metadata.get("meta")
    if not isinstance(meta, dict):
        return ()
    names = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES") or ()
    return tuple(str(name) for name in names)


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = values
    return float(first), float(second), float(third)

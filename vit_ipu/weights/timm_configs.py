"""Reads what timm writes about weights: the config.json of a folder, and the arguments of its train.py.

Only plain ViTs are read: an argument of another architecture, or one that is not known, is refused by name.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.config_values import (
    FolderConfig,
    damage_is_in,
    heads,
    names_in,
    one_of,
    problem_type_in,
    square_side,
)
from vit_ipu.weights.image_processors import RESAMPLE, triple
from vit_ipu.weights.timm_models import GELU, LAYER_NORM_EPS, TimmShape, default_pixels, plain_vit

_ACT_LAYER = {"gelu": "erf", "gelu_tanh": "tanh", "gelu_erf": "erf"}
"""timm's names of activations, and this program's."""
_WITHOUT_EFFECT = {
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("weight_init", "fix_init", "pretrained_strict"),
    *("init_values", "qkv_bias", "no_embed_class"),  # the tensors show these
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size"),  # for images of another size than the model's
}
"""Arguments of timm's VisionTransformer that change nothing at inference, or nothing that the tensors do not show."""
_WRAPPER = "timm_wrapper"
"""model_type of a folder in timm's format that transformers' TimmWrapperForImageClassification wrote."""
_SHAPES = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes"}
_PLAIN: Dict[str, Tuple[Any, ...]] = {
    "in_chans": (3,),
    "class_token": (True,),
    "pos_embed": ("learn",),
    "reg_tokens": (0, None),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pre_norm": (False,),
    "final_norm": (True,),
    "fc_norm": (None, False),
    "pool_include_prefix": (False,),
    "use_naflex": (None, False),
    "norm_layer": (None, "layernorm"),
    "embed_norm_layer": (None,),
    "embed_layer": (None,),
    "block_fn": (None,),
    "mlp_layer": (None,),
    "attn_layer": (None,),
}
"""Arguments of timm's VisionTransformer that would change what it computes, and their values in a plain ViT."""


def read_training_arguments(file: Path, stored: Dict[str, Any]) -> Optional[FolderConfig]:
    """Returns what the arguments in a checkpoint of timm's train.py describe; None for a file of another program.

    `stored` is what the file holds beside its tensors. Raises CheckpointError as `read_folder_config` does.
    """
    architecture, arguments = stored.get("arch"), stored.get("args")
    if not isinstance(architecture, str) or not isinstance(arguments, dict) or "version" not in stored:
        return None
    with damage_is_in(file):
        config = _timm_config(architecture, arguments)
        found, default = read_timm_config(config, file), default_pixels(architecture)
        if default is None:
            return found
        pixels = dict(default._asdict(), **config["pretrained_cfg"])
        implied = _timm_pixels(pixels, found.shape.get("image_size", default.side), file)
        return replace(found, implied=dict(found.implied, **implied))


def read_timm_config(config: Dict[str, Any], path: Path) -> FolderConfig:
    """Reads the config.json of a folder in timm's format, as on the Hugging Face Hub; older ones have one level."""
    pixels, arguments = config.get("pretrained_cfg", config) or {}, config.get("model_args") or {}
    architecture = str(config.get("architecture") or pixels.get("architecture"))
    model = plain_vit(architecture)
    if model is None:
        raise CheckpointError(
            f"{path}: its architecture {architecture} is not one of timm's plain ViTs, which this program computes: "
            "take one such as vit_base_patch16_224"
        )
    for holder in (arguments, config, pixels):
        if holder.get("global_pool") not in (None, "token"):
            raise CheckpointError(f"{path}: its global_pool is {holder['global_pool']}, not the class token")
    _require_plain(arguments, path)
    stated = _timm_settings(arguments)
    side = _timm_image_size(arguments, pixels, path)
    stated.update(_timm_pixels(pixels, side, path))
    stated["classes"] = names_in(config.get("label_names") or pixels.get("label_names"))
    implied = {"num_heads": model.num_heads, "gelu": GELU, "layer_norm_eps": LAYER_NORM_EPS, "pooling": True}
    shape = _timm_shape(model, arguments)
    if side is not None:
        shape["image_size"] = side
    num_classes = next((h["num_classes"] for h in (arguments, config, pixels) if "num_classes" in h), None)
    if num_classes is not None:
        shape["num_classes"] = int(num_classes)
    if config.get("model_type") == _WRAPPER:
        stated["problem_type"] = problem_type_in(config, shape.get("num_classes", 0))
    return FolderConfig(path, "timm", implied, stated, shape)


def _timm_config(architecture: str, arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the config.json of the model that timm's train.py was called for, with what its arguments state.

    A single number of a mean or deviation is of all channels: timm.data.config, `resolve_data_config`.
    """
    model = {"global_pool": arguments.get("gp"), "img_size": arguments.get("img_size")}
    pixels = {name: arguments.get(name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    for name in ("mean", "std"):
        values = arguments.get(name)
        if isinstance(values, (list, tuple)) and len(values) == 1:
            pixels[name] = [*values] * 3
    if arguments.get("img_size"):
        pixels["input_size"] = [3, arguments["img_size"], arguments["img_size"]]
    if arguments.get("input_size"):
        pixels["input_size"] = arguments["input_size"]
    return {
        "architecture": architecture.rpartition("/")[2].partition(".")[0],
        "model_args": dict(_given(model), **(arguments.get("model_kwargs") or {})),
        "pretrained_cfg": _given(pixels),
    }


def _given(values: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", [], ())}


def _require_plain(arguments: Dict[str, Any], path: Path) -> None:
    """Raises CheckpointError if model_args has an argument of another architecture, or one that is not known."""
    for name, value in arguments.items():
        if name in _PLAIN and value not in _PLAIN[name]:
            usual = " or ".join(json.dumps(allowed) for allowed in _PLAIN[name])
            raise CheckpointError(
                f"{path}: its {name} {value} is not known: only plain ViTs are read, whose {name} is {usual}"
            )
        if name not in {*_WITHOUT_EFFECT, *_SHAPES, *_PLAIN, "global_pool", "act_layer"}:
            raise CheckpointError(
                f"{path}: its model_args {name} (of value {value}) is not known: it may change what the model "
                "computes, so remove it only if it does not"
            )


def _timm_settings(arguments: Dict[str, Any]) -> Dict[str, Any]:
    stated: Dict[str, Any] = {}
    if arguments.get("act_layer") is not None:
        stated["gelu"] = _ACT_LAYER[one_of(arguments["act_layer"], tuple(_ACT_LAYER), "act_layer")]
    if "num_heads" in arguments:
        stated["num_heads"] = heads(arguments["num_heads"])
    return stated


def _timm_image_size(arguments: Dict[str, Any], pixels: Dict[str, Any], path: Path) -> Optional[int]:
    """Returns the side of the model's images; None if it is not stated. Raises CheckpointError if not square."""
    sides = [square_side(arguments.get("img_size"), path), square_side((pixels.get("input_size") or [0])[1:], path)]
    return next((side for side in sides if side), None)


def _timm_shape(model: TimmShape, arguments: Dict[str, Any]) -> Dict[str, int]:
    width = int(arguments.get("embed_dim", model.width))
    patch = arguments.get("patch_size", model.patch_size)
    return {
        "width": width,
        "depth": int(arguments.get("depth", model.depth)),
        "mlp_width": int(width * float(arguments.get("mlp_ratio", model.mlp_ratio))),
        "patch_size": int(patch if isinstance(patch, int) else patch[0]),
    }


def _timm_pixels(pixels: Dict[str, Any], side: Optional[int], path: Path) -> Dict[str, Any]:
    stated: Dict[str, Any] = {}
    crop = pixels.get("crop_mode")
    if crop not in (None, "center", "squash"):
        raise CheckpointError(
            f"{path}: its crop_mode {crop} is not known: only center is, a resize of the short side and a centre crop, "
            "and squash, a resize of both sides"
        )
    if crop is not None or "crop_pct" in pixels:
        stated["eval_crop"] = crop or "center"  # timm's default; timm.data.transforms_factory
    if pixels.get("mean") and pixels.get("std"):
        stated.update(mean=triple(pixels["mean"], "mean"), std=triple(pixels["std"], "std"))
    if pixels.get("interpolation"):
        stated["interpolation"] = one_of(pixels["interpolation"], tuple(RESAMPLE.values()), "interpolation")
    if "crop_pct" in pixels and side is not None:
        stated["eval_resize"] = math.floor(side / pixels["crop_pct"])
    return stated

"""timm's name and arguments for a model of any shape, as a config states them and as Python code has them."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from vit_ipu.config import ModelConfig
from vit_ipu.text import python_string
from vit_ipu.variants import VARIANTS

_VARIANTS = ["vit_tiny_patch16", "vit_small_patch16", "vit_small_patch32", "vit_base_patch16", "vit_base_patch32"]
_VARIANTS += ["vit_large_patch14", "vit_large_patch16", "vit_large_patch32", "vit_huge_patch14"]
_ANY = "vit_base_patch16_224"
"""timm's model that makes a ViT of any shape, if its arguments say so."""
TIMM_EPSILON = 1e-6
"""Epsilon of the layer norms of timm's ViTs."""


def timm_model(model: ModelConfig) -> Tuple[str, Dict[str, Any]]:
    """Returns the name of timm's model, and the arguments in which this model differs from it, as JSON can state them.

    timm takes the number of classes and the epsilon of the layer norms separately.
    """
    name = next((f"{variant}_224" for variant in _VARIANTS if _is_of(model, variant)), None)
    arguments: Dict[str, Any] = {} if name is not None else _shape(model)
    if name is None or model.image_size != 224:
        arguments["img_size"] = model.image_size
    if model.gelu == "tanh":
        arguments["act_layer"] = "gelu_tanh"
    return name or _ANY, arguments


def timm_call(model: ModelConfig, num_classes: int, *, file: Optional[str] = None, folder: Optional[str] = None) -> str:
    """Returns the Python code that makes this model with timm, and loads its weights from a file or a folder.

    `num_classes` is 0 for weights without a head.
    """
    epsilon = f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={model.layer_norm_eps:g})"
    parts = [] if model.layer_norm_eps == TIMM_EPSILON else [epsilon]
    if folder is not None:
        return _call([python_string(f"local-dir:{folder}"), "pretrained=True", *parts])
    name, arguments = timm_model(model)
    arguments["num_classes"] = num_classes
    stated = [f"{key}={python_string(value) if isinstance(value, str) else value}" for key, value in arguments.items()]
    return _call([python_string(name), *stated, *parts, f"checkpoint_path={python_string(file or '')}"])


def _call(parts: Any) -> str:
    return f"timm.create_model({', '.join(parts)})"


def _is_of(model: ModelConfig, variant: str) -> bool:
    return model.mlp_ratio == 4 and all(getattr(model, key) == value for key, value in VARIANTS[variant].items())


def _shape(model: ModelConfig) -> Dict[str, Any]:
    values = {
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
    }
    return values if model.mlp_ratio == 4 else dict(values, mlp_ratio=model.mlp_ratio)

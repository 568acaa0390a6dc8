"""Reads what transformers writes about weights: the config.json of a plain ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.config_values import FolderConfig, heads, problem_type_in, square_side

HIDDEN_ACT = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
"""transformers' names of activations, and this program's."""
_HUGGINGFACE_SHAPE = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "intermediate_size": "mlp_width",
    "patch_size": "patch_size",
    "image_size": "image_size",
}
_HUGGINGFACE_DEFAULTS = {"num_heads": 12, "gelu": "erf", "layer_norm_eps": 1e-12, "pooling": True}
"""Settings of ViTConfig that config.json leaves out where they have these values."""


def read_huggingface_config(config: Dict[str, Any], path: Path) -> FolderConfig:
    """Reads the config.json, of content `config`, of a transformers model. Raises CheckpointError for other models."""
    if config["model_type"] != "vit":
        raise CheckpointError(f"{path}: its model_type is {config['model_type']}, not vit")
    if "auto_map" in config:
        raise CheckpointError(f"{path}: its auto_map names code of its own, so it is not transformers' plain ViT")
    stated: Dict[str, Any] = {}
    if "num_attention_heads" in config:
        stated["num_heads"] = heads(config["num_attention_heads"])
    if "layer_norm_eps" in config:
        stated["layer_norm_eps"] = float(config["layer_norm_eps"])
    if "hidden_act" in config:
        activation = config["hidden_act"]
        if activation not in HIDDEN_ACT:
            raise CheckpointError(f"{path}: its hidden_act {activation} is not one of {', '.join(sorted(HIDDEN_ACT))}")
        stated["gelu"] = HIDDEN_ACT[activation]
    shape = {ours: config[theirs] for theirs, ours in _HUGGINGFACE_SHAPE.items() if theirs in config}
    for name in ("image_size", "patch_size"):
        if name in shape:
            shape[name] = square_side(shape[name], path)
    names = config.get("id2label") or {}
    missing = [label for label in range(len(names)) if str(label) not in names]
    if missing:
        raise CheckpointError(f"{path}: its id2label has no label {missing[0]}")
    stated["classes"] = tuple(str(names[str(label)]) for label in range(len(names)))
    stated["problem_type"] = problem_type_in(config, len(names))
    if names:
        shape["num_classes"] = len(names)
    sizes = {name: int(size) for name, size in shape.items()}
    return FolderConfig(path, "huggingface", dict(_HUGGINGFACE_DEFAULTS), stated, sizes)

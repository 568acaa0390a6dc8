"""Writes checkpoints for other tools: completely or not at all, and read back before they get their final name."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from safetensors import SafetensorError
from torch import Tensor

from vit_ipu.config import ModelConfig
from vit_ipu.config_sections.colors import color_text, color_value
from vit_ipu.errors import CheckpointError, RunFailed, UserError, suggest
from vit_ipu.files import place_problem, write_checksums, written_whole
from vit_ipu.text import Notify
from vit_ipu.variants import VARIANTS
from vit_ipu.weights.completeness import measured_shape
from vit_ipu.weights.describe import assumptions, describe, published_heads, with_heads, without_head
from vit_ipu.weights.folder_configs import HIDDEN_ACT
from vit_ipu.weights.image_processors import RESAMPLE
from vit_ipu.weights.metadata import file_metadata
from vit_ipu.weights.model_card import RunFacts, model_card
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import ONE_CLASS, ModelDescription, save_tensors, write_description
from vit_ipu.weights.read import Weights, read_weights
from vit_ipu.weights.translate import from_ours

FORMATS = ("native", "timm", "huggingface", "torchvision", "mmpretrain", "google", "graphcore", "onnx")
_FILE_SUFFIXES = {
    "timm": (".safetensors", ".pth", ".pt", ".bin"),
    "huggingface": (),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "mmpretrain": (".pth", ".pt"),
    "google": (".npz",),
    "graphcore": (".bin", ".pt", ".pth"),
    "onnx": (".onnx",),
    "native": (),
}
_FOLDERS = ("native", "timm", "huggingface")
_PICKLES = (".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Export:
    """A model to export."""

    tensors: Dict[str, Tensor]
    """Tensors by this program's names."""
    description: ModelDescription
    card: Optional[str] = None
    """Text of the README.md that a Hugging Face export has."""

    @property
    def model(self) -> ModelConfig:
        return self.description.model


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    sha256: Optional[str] = None,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    features: bool = False,
    facts_of: Callable[[Path], RunFacts] = lambda path: RunFacts(),
    card_name: Optional[str] = None,
    notify: Notify,
) -> Weights:
    """Writes the weights of `source` to `target` in the format `to`, one of FORMATS; returns the weights read.

    `num_heads` are the attention heads of weights that do not state them. `notify` receives a note on settings that
    had to be assumed, which are marked so in the target, and on settings that the format cannot store. `features`
    leaves out the head and the representation layer: weights to start from. A Hugging Face export has a model card:
    `facts_of` returns what is known of the training of the checkpoint at a path, and `card_name` is the name by which
    the card's example loads the model, the target's if not given. An existing target is not overwritten.
    Raises UserError for a wrong target, and CheckpointError for weights that cannot be read, or that the format cannot
    store.
    """
    check_target(target, to, features)
    weights = read_weights(source, sha256=sha256, trust_pickle=trust_pickle, notify=notify)
    weights = with_heads(weights, num_heads)
    if features:
        weights = without_head(weights)
    export = Export(weights.tensors, describe(weights, headless=features))
    if to == "huggingface":
        export = replace(export, card=_card(export, weights, card_name or target.name, facts_of(weights.path)))
    _check_assumptions_can_be_marked(export, to, source)
    as_file = bool(target.suffix) and target.suffix in _FILE_SUFFIXES[to]
    notes = assumptions(source, export.description) + unsupported_settings(export.model, to, as_file=as_file)
    notes += _unstated_heads(export, to, target) + unsupported_description(export.description, to, as_file=as_file)
    for note in notes:
        notify(f"note: {note}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target, unique=True) as temporary:
            _WRITERS[to](export, temporary)
            _check_written(export, temporary, to)
    except (UserError, RunFailed):
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors raise if they cannot write
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {target}: {reason}") from None
    return weights


def _card(export: Export, weights: Weights, name: str, facts: RunFacts) -> str:
    size = sum(tensor.numel() for tensor in export.tensors.values())
    origin, source = weights.origin, weights.source
    return model_card(name, export.description, num_parameters=size, source=source, origin=origin, facts=facts)


def unsupported_settings(model: ModelConfig, to: str, *, as_file: bool) -> List[str]:
    """Returns notes on settings of the model that the format cannot store, for those who use the exported file."""
    naming = NAMINGS.get(to)
    if naming is None or to == "huggingface":  # these files state the settings
        return []
    if to == "timm" and not as_file:  # timm's config.json states the activation
        naming = replace(naming, gelu=model.gelu)
    notes = []
    if model.gelu != naming.gelu:
        notes.append(f"{to} computes GELU as {naming.gelu}, but the model was trained with {model.gelu}")
    if model.layer_norm_eps != naming.layer_norm_eps:
        notes.append(
            f"{to} has a layer norm epsilon of {naming.layer_norm_eps:g}, but the model was trained with "
            f"{model.layer_norm_eps:g}"
        )
    return notes


def unsupported_description(description: ModelDescription, to: str, *, as_file: bool) -> List[str]:
    """Returns notes on the meaning of outputs and on the resize of images, if the format cannot store them."""
    notes = []
    if description.problem_type != ONE_CLASS and to not in ("native", "huggingface", "onnx"):
        notes.append(f"{to} does not state that the model was trained for {description.problem_type}")
    states_resize = to in ("native", "huggingface", "onnx") or (to == "timm" and not as_file)
    if description.preprocessing.eval_crop == "squash" and not states_resize:
        notes.append(f"{to} does not state that images are resized to a square (squash) rather than cropped")
    background = description.preprocessing.background
    if background is not None and to not in ("native", "onnx"):
        notes.append(
            f"{to} does not state that transparent images are laid on {color_text(background)}: do so before the model "
            "gets them"
        )
    return notes


def _check_assumptions_can_be_marked(export: Export, to: str, source: str) -> None:
    """Raises CheckpointError if the target would state assumed heads as a fact: in the shapes of google's kernels."""
    if to == "google" and "num_heads" in export.description.assumed:
        raise CheckpointError(
            f"{source} does not state its number of attention heads, and the kernels of a google file would state the "
            f"usual number, {export.model.num_heads}, as a fact: give --num-heads"
        )


def _unstated_heads(export: Export, to: str, target: Path) -> List[str]:
    """Returns a note if the target cannot state the heads and its readers would assume another number of them."""
    heads = export.model.num_heads
    if to not in ("timm", "torchvision", "graphcore") or target.suffix not in _PICKLES:
        return []
    if published_heads(measured_shape(export.tensors)) == (heads,):
        return []
    return [f"{target.name} cannot state the number of attention heads, {heads}: read it with --num-heads {heads}"]


def check_target(target: Path, to: str, features: bool) -> None:
    if to not in FORMATS:
        raise UserError(f"--to {to}: unknown{suggest(to, FORMATS)}")
    if features and (to == "onnx" or target.suffix not in _FILE_SUFFIXES[to] or not target.suffix):
        raise UserError(
            f"{target}: --features writes weights without a head, not a complete {to} model: write a file --to timm"
        )
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is already there: give another name")
    problem = place_problem(target)
    if problem is not None:
        raise UserError(f"{target} cannot be made: {problem}: give another path")
    suffixes = _FILE_SUFFIXES[to]
    if to not in _FOLDERS and target.suffix not in suffixes:
        raise UserError(f"{target}: a {to} file ends in {' or '.join(suffixes)}")
    known = {suffix for group in _FILE_SUFFIXES.values() for suffix in group}
    if to in _FOLDERS and target.suffix in known and target.suffix not in suffixes:
        raise UserError(f"{target}: {to} is written as a folder{_or_files(suffixes)}")


def _or_files(suffixes: Any) -> str:
    return f" or as a file that ends in {' or '.join(suffixes)}" if suffixes else ", without a suffix"


def _check_written(export: Export, path: Path, to: str) -> None:
    """Reads the checkpoint back, and raises RunFailed unless every tensor is equal to the last bit.

    An ONNX file is checked by its logits when it is written.
    """
    if to == "onnx":
        return
    back = read_weights(str(path), trust_pickle=True).tensors  # this program has just written the file
    for name, tensor in export.tensors.items():
        if name not in back or not torch.equal(back[name], tensor):
            raise RunFailed(f"{to} was not written correctly: {name} differs when it is read back")


# ----------------------------------------------------------------------------------------- writers


def _write_native(export: Export, path: Path) -> None:
    path.mkdir()
    save_tensors(export.tensors, path / "model.safetensors")
    write_description(path, export.description)
    write_checksums(path)


def _write_timm(export: Export, path: Path) -> None:
    if path.suffix in _FILE_SUFFIXES["timm"]:
        _save(export, "timm", path)
        return
    path.mkdir()
    _save(export, "timm", path / "model.safetensors")
    _write_json(path / "config.json", timm_config(export))


def _write_huggingface(export: Export, path: Path) -> None:
    path.mkdir()
    _save(export, "huggingface", path / "model.safetensors")
    _write_json(path / "config.json", huggingface_config(export))
    _write_json(path / "preprocessor_config.json", huggingface_pixels(export))
    if export.card is not None:
        (path / "README.md").write_text(export.card, encoding="utf-8")


def _write_torchvision(export: Export, path: Path) -> None:
    _save(export, "torchvision", path)


def _write_mmpretrain(export: Export, path: Path) -> None:
    classes = list(export.description.classes)
    meta = {"CLASSES": classes, "dataset_meta": {"classes": classes}}  # keys of mmclassification 0.x, and of mmpretrain
    state = {"meta": meta, "state_dict": _named(export, "mmpretrain")}
    torch.save(dict(state, **file_metadata(export.description)), str(path))


def _write_google(export: Export, path: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        arrays: Dict[str, Any] = {key: tensor.numpy() for key, tensor in _named(export, "google").items()}
        np.savez(file, **arrays)


def _write_graphcore(export: Export, path: Path) -> None:
    torch.save(_named(export, "graphcore"), str(path))


def _write_onnx(export: Export, path: Path) -> None:
    from vit_ipu.weights.onnx import write_onnx

    data = export.description.preprocessing
    metadata = {
        "classes": json.dumps(list(export.description.classes)),
        "mean": json.dumps(list(data.mean)),
        "std": json.dumps(list(data.std)),
        "image_size": str(export.model.image_size),
        "eval_crop": data.eval_crop,
        "background": json.dumps(color_value(data.background)),
        "problem_type": export.description.problem_type,
        "assumed": json.dumps(list(export.description.assumed)),
    }
    write_onnx(path, export.model, export.tensors, metadata=metadata)


_WRITERS: Dict[str, Callable[[Export, Path], None]] = {
    "native": _write_native,
    "timm": _write_timm,
    "huggingface": _write_huggingface,
    "torchvision": _write_torchvision,
    "mmpretrain": _write_mmpretrain,
    "google": _write_google,
    "graphcore": _write_graphcore,
    "onnx": _write_onnx,
}


def _named(export: Export, to: str) -> Dict[str, Tensor]:
    return from_ours(export.tensors, NAMINGS[to], num_heads=export.model.num_heads)


def _save(export: Export, to: str, path: Path) -> None:
    tensors = _named(export, to)
    if path.suffix in _PICKLES:
        torch.save(tensors, str(path))
    else:
        save_tensors(tensors, path, file_metadata(export.description))


def _write_json(path: Path, values: Dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


# -------------------------------------------------------------------- config files of other libraries


def huggingface_config(export: Export) -> Dict[str, Any]:
    """Returns the config.json of transformers' ViTForImageClassification."""
    model = export.model
    names, problem_type = list(export.description.classes), export.description.problem_type
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": next(name for name, gelu in HIDDEN_ACT.items() if gelu == model.gelu),
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "torch_dtype": "float32",
        **({} if problem_type == ONE_CLASS else {"problem_type": problem_type}),  # of one class, one_class is refused
    }


def huggingface_pixels(export: Export) -> Dict[str, Any]:
    """Returns the preprocessor_config.json: resize, centre crop, mean and standard deviation.

    transformers' CLIPImageProcessor resizes the short side, and DeiTImageProcessor both sides; both crop the centre.
    """
    data, size = export.description.preprocessing, export.model.image_size
    side, is_square = data.eval_resize or size, data.eval_crop == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if is_square else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if is_square else {"shortest_edge": side},
        "resample": next(number for number, name in RESAMPLE.items() if name == data.interpolation),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
        "do_convert_rgb": True,
    }


def timm_config(export: Export) -> Dict[str, Any]:
    """Returns the config.json of a folder that `timm.create_model("local-dir:FOLDER")` reads."""
    model, data = export.model, export.description.preprocessing
    return {
        "architecture": timm_name(model),
        "num_classes": model.num_classes,
        "num_features": model.width,
        "label_names": list(export.description.classes),
        "model_args": {"img_size": model.image_size, **({"act_layer": "gelu_tanh"} if model.gelu == "tanh" else {})},
        "pretrained_cfg": {
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": True,
            "interpolation": data.interpolation,
            "crop_pct": model.image_size / (data.eval_resize or model.image_size),
            "crop_mode": data.eval_crop,
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": model.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


_TIMM_VARIANTS = ["vit_tiny_patch16", "vit_small_patch16", "vit_small_patch32", "vit_base_patch16", "vit_base_patch32"]
_TIMM_VARIANTS += ["vit_large_patch14", "vit_large_patch16", "vit_large_patch32", "vit_huge_patch14"]


def timm_name(model: ModelConfig) -> str:
    """Returns timm's model of this shape. Raises CheckpointError if timm has none: then only a file can be written."""
    for variant in _TIMM_VARIANTS:
        if model.mlp_ratio == 4 and all(getattr(model, key) == value for key, value in VARIANTS[variant].items()):
            return f"{variant}_224"
    raise CheckpointError(
        f"timm has no model of width {model.width}, depth {model.depth} and patch size {model.patch_size} with "
        f"{model.num_heads} attention heads: write a file, such as model.safetensors"
    )

"""Formats of exported models: their suffixes, and the writers of their files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor

from vit_ipu.config import ModelConfig
from vit_ipu.config_sections.colors import color_value
from vit_ipu.files import write_checksums
from vit_ipu.weights.export_configs import huggingface_config, huggingface_pixels, timm_config
from vit_ipu.weights.metadata import file_metadata
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import ModelDescription, save_tensors, write_description
from vit_ipu.weights.translate import from_ours

FORMATS = ("native", "timm", "huggingface", "torchvision", "mmpretrain", "google", "graphcore", "onnx")
FILE_SUFFIXES = {
    "timm": (".safetensors", ".pth", ".pt", ".bin"),
    "huggingface": (),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "mmpretrain": (".pth", ".pt"),
    "google": (".npz",),
    "graphcore": (".bin", ".pt", ".pth"),
    "onnx": (".onnx",),
    "native": (),
}
FOLDERS = ("native", "timm", "huggingface")
PICKLES = (".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Export:
    """A model to export."""

    tensors: Dict[str, Tensor]
    """Tensors by this program's names."""
    description: ModelDescription
    card: Optional[str] = None
    """Text of the README.md that a folder for transformers or timm has."""

    @property
    def model(self) -> ModelConfig:
        return self.description.model


def _write_native(export: Export, path: Path) -> None:
    path.mkdir()
    save_tensors(export.tensors, path / "model.safetensors")
    write_description(path, export.description)
    write_checksums(path)


def _write_timm(export: Export, path: Path) -> None:
    if path.suffix in FILE_SUFFIXES["timm"]:
        _save(export, "timm", path)
        return
    path.mkdir()
    _save(export, "timm", path / "model.safetensors")
    _write_json(path / "config.json", timm_config(export.description))
    _write_card(export, path)


def _write_huggingface(export: Export, path: Path) -> None:
    path.mkdir()
    _save(export, "huggingface", path / "model.safetensors")
    _write_json(path / "config.json", huggingface_config(export.description))
    _write_json(path / "preprocessor_config.json", huggingface_pixels(export.description))
    _write_card(export, path)


def _write_card(export: Export, folder: Path) -> None:
    if export.card is not None:
        (folder / "README.md").write_text(export.card, encoding="utf-8")


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


WRITERS: Dict[str, Callable[[Export, Path], None]] = {
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
    if path.suffix in PICKLES:
        torch.save(tensors, str(path))
    else:
        save_tensors(tensors, path, file_metadata(export.description))


def _write_json(path: Path, values: Dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

"""Reads what describes the weights of timm and transformers: config.json, preprocessor_config.json, timm's arguments.

What these state is believed only if all of it is known: another architecture, and a setting that a plain ViT lacks, is
refused by name before the tensors are read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from vit_ipu.errors import CheckpointError
from vit_ipu.small_files import read_json
from vit_ipu.text import reason_of
from vit_ipu.weights.choose import has_usual_name, leads_out
from vit_ipu.weights.config_values import FolderConfig, damage_is_in
from vit_ipu.weights.huggingface_configs import read_huggingface_config
from vit_ipu.weights.image_processors import preprocessing
from vit_ipu.weights.timm_configs import read_timm_config


def read_folder_config(file: Path) -> Optional[FolderConfig]:
    """Reads the files that describe the weights in `file`; returns None if there is none of a known library.

    Raises CheckpointError if a file cannot be read, or describes a model that this program cannot compute.
    """
    with with_remedy(file, file.parent / "config.json"):
        return _read_folder_config(file.parent)


def _read_folder_config(folder: Path) -> Optional[FolderConfig]:
    path, processor = folder / "config.json", folder / "preprocessor_config.json"
    config = _read_json(path)
    if "pretrained_cfg" in config or "architecture" in config:
        with damage_is_in(path):
            return read_timm_config(config, path)
    if config.get("model_type") is None:
        return None
    with damage_is_in(path):
        found = read_huggingface_config(config, path)
    with damage_is_in(processor):
        pixels = preprocessing(_read_json(processor), found.shape.get("image_size"))
    return replace(found, stated=dict(found.stated, **pixels))


@contextmanager
def with_remedy(file: Path, config: Path) -> Iterator[None]:
    """Adds to a refusal of the body what to do if `config`, a file beside `file`, describes other weights."""
    try:
        yield
    except CheckpointError as error:
        if has_usual_name(file) or config == file:
            raise
        remedy = f"if it does not describe {file.name}, move {file.name} to a folder of its own"
        raise CheckpointError(f"{error}; {remedy}") from None


def _read_json(path: Path) -> Dict[str, Any]:
    if not path.exists():
        return {}
    if leads_out(path):
        raise CheckpointError(f"cannot read {path}: it leads out of that folder: put the file there")
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"cannot read {path}: it is not a JSON object")
    return values

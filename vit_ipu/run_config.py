"""Config of a run folder, which stands wherever a config may: the settings that somebody stated, without the defaults.

A run writes its config with all keys. Read back like that, every default would count as stated, and each one without
effect would get a note.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

from vit_ipu.config import Config
from vit_ipu.small_files import read_json
from vit_ipu.variants import VARIANTS

CONFIG_FILE = "config.yaml"
_BATCH_SIZES = ("global_batch_size", "micro_batch_size")
_OF_EVERY_DEVICE = {"global_batch_size", "native_micro_batch_size", "device_iterations"}
"""Keys of `pipeline` that a config for one CPU or GPU may state, too."""


def run_folder_of(path: Path) -> Optional[Path]:
    """Returns the run folder that `path` means: a folder with config.yaml, or the folder of that file; None if none."""
    if path.is_dir():
        return path if (path / CONFIG_FILE).is_file() else None
    is_of_run = path.name == CONFIG_FILE and (path.parent / "checkpoints").is_dir()
    return path.parent if is_of_run else None


def stated_settings(values: Any, folder: Path) -> Any:
    """Returns the sections of a run's config without the keys whose values are defaults.

    The batch sizes stay, unless the run was on one CPU or GPU, with the default of every key of `pipeline` that is for
    IPUs: then its config was not written for them. What is not a mapping is returned as it is: it is refused later.
    """
    if not isinstance(values, dict):
        return values
    stated = {name: _without_defaults(name, part) for name, part in values.items()}
    pipeline = values.get("pipeline")
    if isinstance(pipeline, dict) and (not set(stated["pipeline"]) <= _OF_EVERY_DEVICE or _was_on_ipus(folder)):
        stated["pipeline"].update({key: pipeline[key] for key in _BATCH_SIZES if key in pipeline})
    return stated


def _without_defaults(section: str, part: Any) -> Any:
    """Returns a section without defaults, and without the keys of `model` that follow from its variant."""
    if section not in Config.model_fields or not isinstance(part, dict):
        return part
    fields: Dict[str, Any] = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    variant = part.get("variant") if section == "model" else None
    implied = {key: field.default for key, field in fields.items() if not field.is_required()}
    implied.update(VARIANTS.get(variant, {}) if isinstance(variant, str) else {})
    return {key: value for key, value in part.items() if key not in implied or not _equal(value, implied[key])}


def _equal(value: Any, default: Any) -> bool:
    """Tells whether a value in YAML is a default; a default of several values is a tuple in Python, a list in YAML."""
    same_kind = isinstance(value, bool) == isinstance(default, bool)  # 1 == True
    return same_kind and value == (list(default) if isinstance(default, tuple) else default)


def _was_on_ipus(folder: Path) -> bool:
    """Tells whether a run was on IPUs, real or simulated, by its environment.json; if that is unknown, it may be."""
    try:
        return str(read_json(folder / "environment.json", allow_nan=True)["device"]).startswith("ipu")
    except (OSError, ValueError, LookupError, TypeError):
        return True

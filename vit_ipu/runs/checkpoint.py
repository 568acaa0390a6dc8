"""Checkpoints of a run: written whole or not at all, read without unpickling anything.

A checkpoint is a folder: model.safetensors (timm's names), optimizer.safetensors (optimizer and random state),
state.json (how far the run is, and whatever is not a tensor) and config.json (the run's config and the names of
the classes).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_ipu.config import Config, ConfigError, RunFailed, UserError
from vit_ipu.config_file import parse_config

_MODEL, _OPTIMIZER, _STATE, _CONFIG = "model.safetensors", "optimizer.safetensors", "state.json", "config.json"
_PREFIX, _TEMPORARY = "update-", ".writing-"
_MAX_CONFIG = 16 << 20
_TENSOR = "__tensor__"
_NATIVE = {"cpu", "cuda"}
"""Kinds of device whose optimizer states are alike."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another kind: one line with the path and the remedy."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    update: int = 0
    host_step: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Description:
    """What a model needs to be used: its config and the name of each class."""

    config: Config
    classes: Tuple[str, ...]
    num_train: int
    """Images that it was trained on."""
    labels_sha256: Optional[str] = None
    """Of their labels (int64), in order; none in checkpoints that were not made by training."""


# ---------------------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path,
    state: Dict[str, Any],
    progress: Progress,
    description: Description,
    *,
    device_kind: str,
) -> Path:
    """Writes a checkpoint into `folder` and returns its path; a crash at any instant leaves the others whole.

    Raises RunFailed, and writes nothing, if a weight is not finite.
    """
    for name, tensor in state["model"].items():
        if not tensor.isfinite().all():
            raise RunFailed(
                f"{name} is not finite after update {progress.update}: lower optim.learning_rate or "
                "precision.loss_scale"
            )
    final = folder / f"{_PREFIX}{progress.update:08d}"
    if (final / _STATE).is_file():  # the same update of the same run is the same state
        return final
    shutil.rmtree(final, ignore_errors=True)  # damaged: no reader takes it
    temporary = folder / (_TEMPORARY + final.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: Dict[str, Tensor] = {}
    rest = _take_tensors({"optimizer": state["optimizer"], "rng": state["rng"]}, "", tensors)
    save_tensors(state["model"], temporary / _MODEL)
    save_tensors(tensors, temporary / _OPTIMIZER)
    _write_json(temporary / _STATE, {"progress": asdict(progress), "device": device_kind, "state": rest})
    write_description(temporary, description)
    sync_folder(temporary)
    os.rename(temporary, final)
    _sync(folder)
    return final


def save_tensors(tensors: Dict[str, Tensor], path: Path, metadata: Optional[Dict[str, str]] = None) -> None:
    """A safetensors file that whoever may read the folder may read: newer versions of the library write it 0600.

    Raises RunFailed if it cannot be written, such as to a full disk.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, str(path), {"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise RunFailed(f"cannot write {path}: {error}") from None
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and what an interrupted write left."""
    for path in _checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(_TEMPORARY + "*"):
        shutil.rmtree(path, ignore_errors=True)


def write_description(checkpoint: Path, description: Description) -> None:
    """Writes what makes a folder with model.safetensors a checkpoint of ours: its config and class names."""
    names = {str(label): name for label, name in enumerate(description.classes)}
    config = description.config.model_dump(mode="json")
    facts = {"num_train": description.num_train, "labels_sha256": description.labels_sha256}
    _write_json(checkpoint / _CONFIG, {"id2label": names, **facts, "config": config})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def sync_folder(path: Path) -> None:
    """Makes sure that a folder and its files, or a file, are on the disk."""
    if path.is_dir():
        for part in path.iterdir():
            _sync(part)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------- reading


def newest_checkpoint(folder: Path) -> Optional[Path]:
    """The newest whole checkpoint in `folder`, if there is one."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def is_own(folder: Path) -> bool:
    """Whether a folder is a run or a checkpoint of ours, also a damaged one, rather than somebody else's weights."""
    if (folder / _STATE).is_file() or (folder / "checkpoints").is_dir() or newest_checkpoint(folder) is not None:
        return True
    path = folder / _CONFIG
    try:
        is_small = path.is_file() and path.stat().st_size < _MAX_CONFIG  # no pipe, nor a device without an end
        return is_small and "config" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run folder. Raises CheckpointError."""
    if (path / _MODEL).is_file():
        return path
    for folder in (path / "checkpoints", path):
        newest = newest_checkpoint(folder)
        if newest is not None:
            return newest
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    raise CheckpointError(f"no checkpoint at {path}: expected a run folder or a checkpoint folder")


def load_weights(checkpoint: Path) -> Dict[str, Tensor]:
    """The model's tensors by timm's names. Raises CheckpointError if the file is damaged."""
    return _read_tensors(checkpoint / _MODEL)


def require_same_model(weights: Dict[str, Tensor], own: Dict[str, Tensor], source: str) -> Dict[str, Tensor]:
    """The weights, if they have the names and shapes of `own`. Raises CheckpointError if they are another model's."""
    missing, extra = unmatched(list(own), list(weights))
    for name in missing + extra:
        raise CheckpointError(f"{source} is of another model: {name} is in only one of them")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{source} is of another model: {name} has shape {tuple(weights[name].shape)} there and "
                f"{tuple(tensor.shape)} in the config"
            )
    return weights


def load_description(checkpoint: Path) -> Description:
    """The config and class names of a checkpoint. Raises CheckpointError."""
    values = _read_json(checkpoint / _CONFIG)
    try:
        names = values["id2label"]
        classes = tuple(names[str(label)] for label in range(len(names)))
        config, num_train = parse_config(values["config"]), int(values["num_train"])
        return Description(config, classes, num_train, values.get("labels_sha256"))
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint / _CONFIG} is damaged: {error}") from None


def load_checkpoint(checkpoint: Path, *, device_kind: str) -> Tuple[Dict[str, Any], Progress]:
    """All that a run goes on from. Raises CheckpointError if it is damaged or was made on another kind of device."""
    values = _read_json(checkpoint / _STATE)
    try:
        progress, made_on, rest = Progress(**values["progress"]), values["device"], values["state"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / _STATE} is damaged: {error}") from None
    if made_on != device_kind and not {made_on, device_kind} <= _NATIVE:
        raise CheckpointError(
            f"{checkpoint} was made on {made_on} and cannot be resumed on {device_kind}: resume with --device "
            f"{made_on}, or start a new run with --set model.init={checkpoint}"
        )
    try:
        state = _put_tensors(rest, _read_tensors(checkpoint / _OPTIMIZER))
    except KeyError as error:
        raise CheckpointError(f"{checkpoint / _OPTIMIZER} is damaged: it lacks {error}") from None
    return dict(state, model=load_weights(checkpoint)), progress


def load_resumable(checkpoint: Path, description: Description, *, device_kind: str) -> Tuple[Dict[str, Any], Progress]:
    """The same, for a run on the images of `description`. Raises CheckpointError also if they are others."""
    saved = load_description(checkpoint)
    if (saved.num_train, saved.classes) != (description.num_train, description.classes):
        raise CheckpointError(
            "{} was trained on {:,} images of {} classes ({}, ...), but data.path holds {:,} of {} ({}, ...): give the "
            "same images".format(checkpoint, *_summary_of(saved), *_summary_of(description))
        )
    digests = {saved.labels_sha256, description.labels_sha256} - {None}
    if len(digests) > 1:
        raise CheckpointError(
            f"{checkpoint} was trained on as many images, but in another order or with other labels: give the same "
            "images"
        )
    return load_checkpoint(checkpoint, device_kind=device_kind)


def _summary_of(description: Description) -> Tuple[int, int, str]:
    return description.num_train, len(description.classes), description.classes[0]


def _checkpoints(folder: Path) -> List[Path]:
    return sorted(path for path in folder.glob(_PREFIX + "*") if (path / _STATE).is_file())


def _read_tensors(path: Path) -> Dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


# -------------------------------------------------------------------- tensors in nested dictionaries


def _take_tensors(value: Any, name: str, tensors: Dict[str, Tensor]) -> Any:
    """The nested value with each tensor moved into `tensors` and its name left behind."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {key: _take_tensors(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _put_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_tensors(part, tensors) for part in value]
    return value


def unmatched(expected: Sequence[str], found: Sequence[str]) -> Tuple[List[str], List[str]]:
    """The names that are missing and those that are not expected, in order."""
    return [n for n in expected if n not in set(found)], [n for n in found if n not in set(expected)]

"""Checkpoints of a run: written completely or not at all, read without unpickling anything.

A checkpoint is a folder: model.safetensors (timm's names), optimizer.safetensors (optimizer and random state),
state.json (the progress, and state that is not a tensor) and config.json (the run's config and the names of
the classes).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Tuple

from torch import Tensor

from vit_ipu.errors import CheckpointError, RunFailed
from vit_ipu.files import TEMPORARY, remove, written_whole
from vit_ipu.weights.native import (
    MODEL,
    PREFIX,
    STATE,
    ModelDescription,
    checkpoints_in,
    load_description,
    load_tensors,
    read_json,
    save_tensors,
    write_description,
)

_OPTIMIZER = "optimizer.safetensors"
_TENSOR = "__tensor__"
_NATIVE = {"cpu", "cuda"}
"""Kinds of device whose optimizer states have the same form."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: updates, host steps and samples that are done."""

    update: int = 0
    host_step: int = 0
    samples: int = 0


# ---------------------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path,
    state: Dict[str, Any],
    progress: Progress,
    description: ModelDescription,
    *,
    device_kind: str,
) -> Path:
    """Writes a checkpoint into `folder` and returns its path; a crash at any instant leaves the others intact.

    Raises RunFailed, and writes nothing, if a weight is not finite.
    """
    for name, tensor in state["model"].items():
        if not tensor.isfinite().all():
            raise RunFailed(
                f"{name} is not finite after update {progress.update}: lower optim.learning_rate or "
                "precision.loss_scale"
            )
    final = folder / f"{PREFIX}{progress.update:08d}"
    if (final / STATE).is_file():  # the same update of the same run gives the same state
        return final
    remove(final)  # without a state it is damaged, and readers ignore it
    tensors: Dict[str, Tensor] = {}
    rest = _take_tensors({"optimizer": state["optimizer"], "rng": state["rng"]}, "", tensors)
    with written_whole(final) as temporary:
        temporary.mkdir(parents=True)
        save_tensors(state["model"], temporary / MODEL)
        save_tensors(tensors, temporary / _OPTIMIZER)
        values = {"progress": asdict(progress), "device": device_kind, "state": rest}
        (temporary / STATE).write_text(json.dumps(values, indent=1), encoding="utf-8")
        write_description(temporary, description)
    return final


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and the remains of interrupted writes."""
    for path in [*checkpoints_in(folder)[:-keep], *folder.glob(TEMPORARY + "*")]:
        remove(path)


# ---------------------------------------------------------------------------------------- reading


def load_checkpoint(checkpoint: Path, *, device_kind: str) -> Tuple[Dict[str, Any], Progress]:
    """Returns the state and the progress from which a run resumes.

    Raises CheckpointError if the checkpoint is damaged or was made on another kind of device.
    """
    values = read_json(checkpoint / STATE)
    try:
        progress, made_on, rest = Progress(**values["progress"]), values["device"], values["state"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint / STATE} is damaged: {error}; remove {checkpoint} to resume from an earlier one"
        ) from None
    if made_on != device_kind and not {made_on, device_kind} <= _NATIVE:
        raise CheckpointError(
            f"{checkpoint} was made on {made_on} and cannot be resumed on {device_kind}: resume with --device "
            f"{made_on}, or start a new run with --set model.init={checkpoint}"
        )
    try:
        state = _put_tensors(rest, load_tensors(checkpoint / _OPTIMIZER))
    except KeyError as error:
        raise CheckpointError(
            f"{checkpoint / _OPTIMIZER} is damaged: it lacks {error}; remove {checkpoint} to resume from an earlier one"
        ) from None
    return dict(state, model=load_tensors(checkpoint / MODEL)), progress


def load_resumable(
    checkpoint: Path, description: ModelDescription, *, device_kind: str
) -> Tuple[Dict[str, Any], Progress]:
    """Returns the state and the progress, like `load_checkpoint`, for a run on the images of `description`.

    Raises CheckpointError also if the checkpoint was trained on other images.
    """
    saved = load_description(checkpoint)
    before, now = saved.trained, description.trained
    assert now is not None
    if before is None or (before.num_train, saved.classes) != (now.num_train, description.classes):
        count, names = 0 if before is None else before.num_train, description.classes
        raise CheckpointError(
            f"{checkpoint} was trained on {count:,} images of {len(saved.classes)} classes ({saved.classes[0]}, ...), "
            f"but data.path holds {now.num_train:,} of {len(names)} ({names[0]}, ...): give the same images"
        )
    if len({before.labels_sha256, now.labels_sha256} - {None}) > 1:
        raise CheckpointError(
            f"{checkpoint} was trained on as many images, but in another order or with other labels: give the same "
            "images"
        )
    return load_checkpoint(checkpoint, device_kind=device_kind)


# -------------------------------------------------------------------- tensors in nested dictionaries


def _take_tensors(value: Any, name: str, tensors: Dict[str, Tensor]) -> Any:
    """Moves each tensor in a nested value into `tensors`; returns the value with names in place of the tensors."""
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

"""Checkpoints of a run: written completely or not at all, verified when read, without unpickling anything.

A checkpoint is a folder: model.safetensors (timm's names), optimizer.safetensors (optimizer and random state),
state.json (the progress, the device and its numerics, and state that is not a tensor), config.json (the run's config
and the names of the classes) and checksums.json (the size and the SHA-256 of each of these).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from torch import Tensor

from vit_ipu.config import PipelineConfig
from vit_ipu.errors import CheckpointError, DamagedCheckpoint
from vit_ipu.files import (
    find_damage,
    remove,
    remove_leftovers,
    remove_whole,
    sync_entry,
    write_checksums,
    written_whole,
)
from vit_ipu.text import Notify, counted
from vit_ipu.weights.native import (
    CONFIG,
    MODEL,
    PREFIX,
    STATE,
    ModelDescription,
    checkpoints_in,
    load_description,
    load_tensors,
    read_json,
    require_whole,
    save_tensors,
    update_of,
    write_description,
)

_OPTIMIZER = "optimizer.safetensors"
_FILES = (MODEL, _OPTIMIZER, STATE, CONFIG)
_TENSOR = "__tensor__"
DAMAGED = "damaged-"
"""Prefix of the name of a damaged checkpoint from which a run did not resume."""
_NATIVE = {"cpu", "cuda"}
"""Kinds of device whose optimizer states have the same form."""
_EXACT = "exact"
"""Numerics of a checkpoint that states none."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: updates, host steps and samples that are done."""

    update: int = 0
    host_step: int = 0
    samples: int = 0

    @classmethod
    def at(cls, host_step: int, pipeline: PipelineConfig) -> Progress:
        """Returns the progress of a run after a number of host steps."""
        return cls(host_step * pipeline.device_iterations, host_step, host_step * pipeline.samples_per_step)


# ---------------------------------------------------------------------------------------- writing


def save_checkpoint(
    folder: Path,
    state: Dict[str, Any],
    progress: Progress,
    description: ModelDescription,
    *,
    device_kind: str,
    numerics: Optional[str] = None,
) -> Path:
    """Writes a checkpoint into `folder` and returns its path; a crash at any instant leaves the others intact.

    `numerics` are those of simulated IPUs. Raises RunFailed, and leaves nothing behind, if a file cannot be written.
    """
    final = folder / f"{PREFIX}{progress.update:08d}"
    if _is_whole(final):  # the same update of the same run gives the same state
        return final
    tensors: Dict[str, Tensor] = {}
    rest = _take_tensors({part: value for part, value in state.items() if part != "model"}, "", tensors)
    with written_whole(final) as temporary:
        temporary.mkdir(parents=True)
        save_tensors(state["model"], temporary / MODEL)
        save_tensors(tensors, temporary / _OPTIMIZER)
        values = {"progress": asdict(progress), "device": device_kind, "numerics": numerics, "state": rest}
        (temporary / STATE).write_text(json.dumps(values, indent=1), encoding="utf-8")
        write_description(temporary, description)
        write_checksums(temporary)
        if final.exists():  # damaged
            remove_whole(final)
    return final


def _is_whole(checkpoint: Path) -> bool:
    try:
        return find_damage(checkpoint, _FILES) is None
    except OSError:
        return False


def remove_old_checkpoints(folder: Path, keep: int, *, best: Optional[int] = None) -> None:
    """Removes all but the newest `keep` checkpoints and the one of update `best`, and what earlier removals left."""
    for path in checkpoints_in(folder)[:-keep]:
        if update_of(path) != best:
            remove_whole(path)
    remove_leftovers(folder)


def set_aside_later_checkpoints(folder: Path, update: int) -> None:
    """Renames the damaged checkpoints after the update from which a run resumes, because the run writes them again."""
    for path in checkpoints_in(folder):
        if update_of(path) > update:
            aside = path.with_name(f"{DAMAGED}{path.name}")
            remove(aside)
            os.replace(str(path), str(aside))
    sync_entry(folder)


# ---------------------------------------------------------------------------------------- reading


def load_checkpoint(
    checkpoint: Path, *, device_kind: str, numerics: Optional[str] = None, notify: Notify = lambda text: None
) -> Tuple[Dict[str, Any], Progress]:
    """Returns the state and the progress from which a run resumes.

    `numerics` are those of a simulated device; None means exact, the only ones before checkpoints stated them.
    `notify` receives a note if the checkpoint has no checksums. Raises DamagedCheckpoint if the checkpoint is damaged,
    and CheckpointError if it was made on another kind of device, or with other numerics.
    """
    require_whole(checkpoint, _FILES, notify=notify)
    values = read_json(checkpoint / STATE)
    pipeline = _pipeline_of(checkpoint)
    try:
        progress, made_on, rest = Progress(**values["progress"]), values["device"], values["state"]
        made_with = _numerics_of(values)
        _check_progress(progress, pipeline)
        _check_parts(rest)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{checkpoint / STATE} is damaged: {error}") from None
    if made_on != device_kind and not {made_on, device_kind} <= _NATIVE:
        raise CheckpointError(
            f"{checkpoint} was made on {made_on} and cannot be resumed on {device_kind}: resume with --device "
            f"{made_on}, or start a new run with --set model.init={checkpoint}"
        )
    if made_with != (numerics or _EXACT):
        raise CheckpointError(
            f"{checkpoint} was made with --numerics {made_with} and cannot be resumed with --numerics "
            f"{numerics or _EXACT}: resume with --numerics {made_with}, or start a new run with --set "
            f"model.init={checkpoint}"
        )
    tensors = load_tensors(checkpoint / _OPTIMIZER)
    used: Dict[str, Tensor] = {}
    try:
        state = _put_tensors(rest, tensors, used)
    except KeyError as error:
        raise DamagedCheckpoint(f"{checkpoint / _OPTIMIZER} is damaged: it lacks {error}") from None
    for name in sorted(set(tensors) - set(used)):
        raise DamagedCheckpoint(f"{checkpoint / STATE} is damaged: it lacks {name}, which is in {_OPTIMIZER}")
    return dict(state, model=load_tensors(checkpoint / MODEL)), progress


def _pipeline_of(checkpoint: Path) -> PipelineConfig:
    """Returns the section `pipeline` of the config that a checkpoint was trained with."""
    trained = load_description(checkpoint).trained
    if trained is None:
        raise DamagedCheckpoint(f"{checkpoint / CONFIG} is damaged: it does not have the config of a run")
    return trained.config.pipeline


def _check_progress(progress: Progress, pipeline: PipelineConfig) -> None:
    """Raises ValueError unless updates, host steps and samples are numbers that a run with this config reaches."""
    counts = (progress.update, progress.host_step, progress.samples)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{progress} must have integers that are not negative")
    right = Progress.at(progress.host_step, pipeline)
    if progress != right:
        raise ValueError(f"{progress} should be {right} by the checkpoint's config")


def _check_parts(state: Any) -> None:
    """Raises ValueError unless the state has mappings for the optimizer, for the random numbers and of counts."""
    for name in ("optimizer", "rng"):
        if not isinstance(state, dict) or not isinstance(state.get(name), dict):
            raise ValueError(f"it lacks {name}")
    counts = state.get("counts", {})
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError(f"its counts {counts} must be integers that are not negative")


def _numerics_of(values: Dict[str, Any]) -> str:
    """Returns the numerics that a checkpoint states. Raises ValueError if they do not exist."""
    numerics = values.get("numerics") or _EXACT
    if numerics not in (_EXACT, "ipu"):
        raise ValueError(f"its numerics {numerics!r} are unknown")
    return str(numerics)


def load_resumable(
    checkpoint: Path,
    description: ModelDescription,
    *,
    device_kind: str,
    numerics: Optional[str] = None,
    notify: Notify = lambda text: None,
) -> Tuple[Dict[str, Any], Progress]:
    """Returns the state and the progress, like `load_checkpoint`, for a run on the images of `description`.

    Raises CheckpointError also if the checkpoint was trained on other images, or for longer than the run lasts.
    """
    state, progress = load_checkpoint(checkpoint, device_kind=device_kind, numerics=numerics, notify=notify)
    saved = load_description(checkpoint)
    before, now = saved.trained, description.trained
    assert now is not None
    if before is None or (before.num_train, saved.classes) != (now.num_train, description.classes):
        count, names = 0 if before is None else before.num_train, description.classes
        raise CheckpointError(
            f"{checkpoint} was trained on {counted(count, 'image')} of "
            f"{counted(len(saved.classes), 'class', 'classes')} ({saved.classes[0]}, ...), "
            f"but data.path holds {now.num_train:,} of {len(names)} ({names[0]}, ...): give the same images"
        )
    if len({before.labels_sha256, now.labels_sha256} - {None}) > 1:
        raise CheckpointError(
            f"{checkpoint} was trained on as many images, but in another order or with other labels: give the same "
            "images"
        )
    longest = before.config.total_updates(before.num_train)
    if progress.update > longest or progress.update != update_of(checkpoint):
        raise DamagedCheckpoint(
            f"{checkpoint / STATE} is damaged: it is of update {progress.update:,} of {longest:,}, unlike its folder"
        )
    total = now.config.total_updates(now.num_train)
    if progress.update > total:
        raise CheckpointError(
            f"{checkpoint} is of update {progress.update:,}, but the run now has {total:,}: raise run.updates or "
            "run.epochs"
        )
    return state, progress


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


def _put_tensors(value: Any, tensors: Dict[str, Tensor], used: Dict[str, Tensor]) -> Any:
    """Reverses `_take_tensors`, and adds the tensors that the value names to `used`."""
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            name = value[_TENSOR]
            used[name] = tensors[name]
            return tensors[name]
        return {key: _put_tensors(part, tensors, used) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_tensors(part, tensors, used) for part in value]
    return value

"""Divergence: recognises a run whose loss or state has exploded, and records what is needed to find the cause."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.backends.contract import StepResult
from vit_ipu.config import Config
from vit_ipu.files import remove, sync_entry, write_whole
from vit_ipu.runs.checkpoint import Progress
from vit_ipu.runs.folder import RunFolder
from vit_ipu.text import counted
from vit_ipu.weights.native import PREFIX, checkpoints_in

ASIDE = "diverged-"
"""Prefix of the name of a checkpoint that was made after the loss had exploded; nothing resumes from it."""


def problem_of_loss(result: StepResult, config: Config, guess: float) -> Optional[str]:
    """Returns what is wrong with the losses of a host step, or None.

    A loss must be finite, and no update may cost more than run.max_loss_factor times `guess`, the loss of a guess (such
    as ln K for K classes; `losses.loss_of_guess`). The rule needs no history, so a resumed run judges as an
    uninterrupted one does.
    """
    if not math.isfinite(result.loss):
        return f"the loss is {result.loss}"
    factor, num_classes = config.run.max_loss_factor, config.model.num_classes
    if factor is not None and max(result.losses) > factor * guess:
        return (
            f"the loss is {max(result.losses):.4g}, above run.max_loss_factor {factor:g} times {guess:.4g}, the loss "
            f"of a guess among {counted(num_classes, 'class', 'classes')}"
        )
    return None


def problem_of_state(state: Any) -> Optional[str]:
    """Returns the name of a weight, or of an optimizer's tensor, that is not finite, as a problem; None if all are."""
    for name, tensor in _tensors(state["model"], ""):
        if not _is_finite(tensor):
            return f"{name} is not finite"
    for name, tensor in _tensors(state["optimizer"], ""):
        if not _is_finite(tensor):
            return f"the optimizer's state {name} is not finite, so a gradient was not"
    return None


def _is_finite(tensor: Tensor) -> bool:
    """Tells whether all elements are finite; their sum, ten times as quick, is not finite if one of them is not."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def _tensors(values: Any, name: str) -> Iterator[Tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _tensors(value, f"{name}/{key}" if name else str(key))


def set_aside_exploded(folder: RunFolder, update: int) -> List[Path]:
    """Renames the checkpoints from `update` on, whose weights gave the loss that exploded; returns their new paths."""
    moved = []
    for path in checkpoints_in(folder.checkpoints):
        if int(path.name[len(PREFIX) :]) >= update:
            aside = path.with_name(ASIDE + path.name)
            remove(aside)
            os.replace(str(path), str(aside))
            moved.append(aside)
    if moved:
        sync_entry(folder.checkpoints)
    return moved


def record_divergence(
    folder: RunFolder,
    problem: str,
    progress: Progress,
    result: StepResult,
    learning_rate: float,
    samples: List[Tuple[int, int, str]],
    exploded: Sequence[Path],
) -> Path:
    """Writes diverged.json into the run folder and returns its path.

    The file has the update, the learning rate, the losses, the checkpoint to continue from, and the epoch (with
    data.sampling balanced: the pass over its class), index and name of each sample of the host step.
    """
    good = folder.newest_checkpoint()
    facts = {
        "problem": problem,
        "update": progress.update,
        "host_step": progress.host_step,
        "learning_rate": learning_rate,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in result.losses],
        "last_good_checkpoint": None if good is None else str(good),
        "set_aside": [str(path) for path in exploded],
        "samples": samples,
    }
    write_whole(folder.divergence, json.dumps(facts, indent=1, allow_nan=False))
    return folder.divergence

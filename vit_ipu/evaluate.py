"""Evaluation: top-1, top-5 and mean loss over every held-out image, each exactly once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, List, Sequence

import torch
import torch.nn.functional as F

from vit_ipu.backends import Backend, HostBatch
from vit_ipu.config import Config, RunFailed, UserError
from vit_ipu.runs.checkpoint import Description


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    top1: float
    """Per cent of images whose class has the highest logit."""
    top5: float
    """Per cent of images whose class is among the five highest logits, or among all if there are fewer."""
    loss: float
    """Mean cross-entropy in nats, without smoothing."""
    num_images: int


# Settings without a shape that change what a model computes, and may be chosen anew for an evaluation.
_MAY_DIFFER = (
    ("model", "gelu"),
    ("model", "layer_norm_eps"),
    ("data", "mean"),
    ("data", "std"),
    ("data", "eval_resize"),
    ("data", "interpolation"),
)


def differences_from(trained: Description, config: Config, classes: Sequence[str]) -> List[str]:
    """Notes on settings other than those that a checkpoint was trained with.

    Raises UserError if it is not the same model, or its classes are not those of the images.
    """
    if config.model.num_heads != trained.config.model.num_heads:
        raise UserError(
            f"the checkpoint was trained with model.num_heads {trained.config.model.num_heads}, but the config has "
            f"{config.model.num_heads}: use its own config"
        )
    for ours, theirs in zip(classes, trained.classes) if trained.num_train else ():  # ours; others name them otherwise
        if ours != theirs:
            raise UserError(f"the checkpoint knows the class {theirs}, where the images have {ours}")
    before_and_now = (
        (section, key, getattr(getattr(trained.config, section), key), getattr(getattr(config, section), key))
        for section, key in _MAY_DIFFER
    )
    return [
        f"{section}.{key} is {now}, but the checkpoint was trained with {before}"
        for section, key, before, now in before_and_now
        if before != now
    ]


def evaluate(backend: Backend, batches: Iterable[HostBatch]) -> Evaluation:
    """Predicts each batch and counts. Backends pad as their devices need; no padding is counted.

    Raises RunFailed if the model's outputs are not finite, or there is no image.
    """
    top1 = top5 = count = 0
    loss = 0.0
    for batch in batches:
        logits = backend.predict(batch.images)
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.any(dim=1).sum())
        loss += float(F.cross_entropy(logits.to(torch.float64), batch.labels, reduction="sum"))
        count += len(batch)
    if count == 0:
        raise RunFailed("there is no held-out image that can be read")
    if not math.isfinite(loss):
        raise RunFailed("the model's outputs are not finite: its weights are damaged, or have diverged")
    return Evaluation(100 * top1 / count, 100 * top5 / count, loss / count, count)

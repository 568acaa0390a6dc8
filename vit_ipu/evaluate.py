"""Evaluation: top-1, top-5 and mean loss over every held-out image, each exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

import torch
import torch.nn.functional as F

from vit_ipu.backends import Backend, HostBatch


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


def evaluate(backend: Backend, batches: Iterable[HostBatch]) -> Evaluation:
    """Predicts each batch and counts. Backends pad as their devices need; no padding is counted."""
    top1 = top5 = count = 0
    loss = 0.0
    for batch in batches:
        logits = backend.predict(batch.images)
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.any(dim=1).sum())
        loss += float(F.cross_entropy(logits.to(torch.float64), batch.labels, reduction="sum"))
        count += len(batch)
    return Evaluation(100 * top1 / count, 100 * top5 / count, loss / count, count)

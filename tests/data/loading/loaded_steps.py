"""Host steps of a training, loaded and compared."""

from __future__ import annotations

import torch

from vit_ipu.backends.contract import HostBatch
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.pipeline import BatchPlan


def training_loader(config, start=0, total=4, share=(0, 1)):
    source = open_source(config.data, config.model, "train")
    positions = BatchPlan.of(config).share(*share)
    return TrainingLoader(source, config, positions, start_step=start, total_steps=total)


def copies(loader):
    """Returns copies of the batches, because with workers each batch reuses the memory of an earlier batch."""
    return [HostBatch(batch.images.clone(), batch.labels.clone()) for batch in loader]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in zip(a, b)
    )

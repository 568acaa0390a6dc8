"""A small model on two IPUs, its data, and the plain training loop that the simulator is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vit_ipu import simulator as poptorch


class TwoStages(nn.Module):
    """Two linear layers on two IPUs, with the loss in the last block."""

    def __init__(self, *, loss: str = "function") -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.dropout = nn.Dropout(0.0)
        self.loss = loss
        poptorch.BeginBlock(self.first, "first", ipu_id=0)
        poptorch.BeginBlock(self.second, "second", ipu_id=1)

    def forward(self, x, labels):
        out = self.second(self.dropout(torch.tanh(self.first(x))))
        if self.loss == "function":
            return out, F.cross_entropy(out, labels)
        log_probabilities = F.log_softmax(out, dim=1)
        hard = -log_probabilities.gather(1, labels[:, None])
        return out, poptorch.identity_loss(hard, reduction="mean")


def options(D=1, G=4, R=1, mode=None, *, sharded=False, **_):
    made = poptorch.Options().deviceIterations(D).replicationFactor(R).randomSeed(0)
    if sharded:
        made.setExecutionStrategy(poptorch.ShardedExecution())
    made.Training.gradientAccumulation(G)
    if mode is not None:
        made.outputMode(*mode) if isinstance(mode, tuple) else made.outputMode(mode)
    return made


def executor_of(model, optimizer, *, accumulation=4, replicas=1, change=None):
    """Returns a training executor; `change` may change its options."""
    made = options(1, accumulation, replicas)
    if change is not None:
        change(made)
    return poptorch.trainingModel(model, made, optimizer)


def data(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=dtype), torch.randint(3, (count,), generator=generator)


def train_plainly(model, batches, optimizer, *, micro_batches, reduction="mean"):
    """Trains with one update per batch: differentiates the mean, or the sum, of the micro-batches' mean losses."""
    for x, labels in batches:
        optimizer.zero_grad()
        losses = [model(a, b)[1] for a, b in zip(x.chunk(micro_batches), labels.chunk(micro_batches))]
        total = torch.stack(losses).sum() if reduction == "sum" else torch.stack(losses).mean()
        total.backward()
        optimizer.step()


def half(*shape, seed=0, scale=1.0):
    """Returns normally distributed numbers in float16."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).half()

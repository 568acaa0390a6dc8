"""Selection of the micro-batches whose values a call returns, by OutputMode, and joining of the values."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.enums import OutputMode


def returned_rounds(rounds: int, mode: OutputMode, period: int) -> Sequence[int]:
    """Returns the indices of a replica's micro-batches whose values the host gets; for a sum, the last index."""
    if mode == OutputMode.All:
        period = 1
    elif mode != OutputMode.EveryN:
        period = max(rounds, 1)
    return range(period - 1, rounds, period)


def joined(values: Sequence[Tensor], replicas: int, mode: OutputMode, period: int) -> Tensor:
    """Selects or sums the micro-batches' values by `mode`, and joins them along dim 0; order: [round][replica]."""
    if mode == OutputMode.Sum:
        kept = [torch.stack(list(values[replica::replicas])).sum(0) for replica in range(replicas)]
    else:
        rounds = returned_rounds(len(values) // replicas, mode, period)
        kept = [values[index * replicas + replica] for index in rounds for replica in range(replicas)]
    if kept[0].dim() == 0:
        return kept[0] if len(kept) == 1 else torch.stack(kept)
    return torch.cat(kept)

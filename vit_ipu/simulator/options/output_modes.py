"""Which micro-batches' values a call returns, by OutputMode, and how they are joined."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.errors import cpp_error


def returned_rounds(rounds: int, mode: OutputMode, period: int) -> Sequence[int]:
    """Those of a replica's micro-batches whose values the host gets; a sum comes with the last.

    Raises Error if the period of EveryN does not divide their number.
    """
    if mode == OutputMode.All:
        period = 1
    elif mode != OutputMode.EveryN:
        period = max(rounds, 1)
    if rounds % period:
        raise cpp_error(f"The output return period {period} does not divide the {rounds} micro-batches")
    return range(period - 1, rounds, period)


def joined(values: Sequence[Tensor], replicas: int, mode: OutputMode, period: int) -> Tensor:
    """The values of all micro-batches, in the order [round][replica], in the mode's selection along dim 0."""
    if mode == OutputMode.Sum:
        kept = [torch.stack(list(values[replica::replicas])).sum(0) for replica in range(replicas)]
    else:
        rounds = returned_rounds(len(values) // replicas, mode, period)
        kept = [values[index * replicas + replica] for index in rounds for replica in range(replicas)]
    if kept[0].dim() == 0:
        return kept[0] if len(kept) == 1 else torch.stack(kept)
    return torch.cat(kept)

"""The mean of gradients over all processes of a run, in one message after the last pass of an update.

DistributedDataParallel hides the message behind the last pass, but keeps the pass from being a CUDA graph. Without a
graph, small batches wait for the host: on two H200, ViT-B/16 with 64 images a process ran at 33 % of twice one.
"""

from __future__ import annotations

from typing import List, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vit_ipu.backends.native.distributed import lost_processes_reported

_ALIGNMENT = 64
"""Elements to a multiple of which each gradient begins, so that kernels can read several at a time."""


class GradientMean:
    """Gradients of parameters of one format, which lie in one tensor."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        lengths = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
        self._all = torch.zeros(sum(lengths), dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients: List[Tensor] = [
            part[: parameter.numel()].view_as(parameter)
            for part, parameter in zip(torch.split(self._all, lengths), parameters)
        ]

    @torch.no_grad()
    def reduce(self) -> None:
        """Replaces the gradients by their mean over all processes, each of which must call this.

        Raises RunFailed if another process of the run has ended.
        """
        with lost_processes_reported():
            dist.all_reduce(self._all)
        self._all /= dist.get_world_size()

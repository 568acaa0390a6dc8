"""Forward and backward passes over the micro-batches of an update."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Callable, List, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.backends.contract import HostBatch
from vit_ipu.backends.native.distributed import lost_processes_reported, num_processes, parallel
from vit_ipu.backends.native.gradient_mean import GradientMean
from vit_ipu.backends.native.graphs import Graphed
from vit_ipu.backends.native.working_copy import WorkingCopy
from vit_ipu.step import TrainingStep


class Passes:
    """The passes of one process, whose gradients end in the weights that the optimizer updates."""

    def __init__(
        self, step: TrainingStep, copy: Optional[WorkingCopy], device: torch.device, *, factor: float, compiles: bool
    ) -> None:
        """`copy` is the working copy that `step` computes with, if not with the masters; the loss is times `factor`."""
        self._step, self._copy, self._device, self._factor = step, copy, device, factor
        self._mean = None if copy is None or num_processes() == 1 else GradientMean(copy.trained)
        if copy is not None and self._mean is not None:
            copy.keep_gradients_in(self._mean.gradients)
        self._parallel = parallel(step, device) if copy is None else None
        self.loss_of: Callable[..., Tensor] = step if self._parallel is None else self._parallel
        if compiles:
            self.loss_of = torch.compile(self.loss_of, dynamic=False)
        self._scale = factor
        self._graph: Optional[Graphed[Tuple[Tensor, List[Tensor]]]] = None
        if compiles and device.type == "cuda" and copy is not None:
            self._graph = Graphed(self._pass_of_copy)

    def accumulate(self, batch: HostBatch, micro_batch_size: int) -> Tensor:
        """Adds the reduced gradient of a part of a global batch, on the device, and returns the part's mean loss."""
        share = micro_batch_size / len(batch)
        self._scale = share * self._factor
        total = torch.zeros((), device=self._device)
        parts = list(batch.split(micro_batch_size))
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            loss = self._pass(part) if self._parallel is None else self._joint_pass(part, is_last=is_last)
            total = total + share * loss
        if self._mean is not None:
            self._mean.reduce()
        return total

    def try_size(self, batch: HostBatch) -> None:
        """Makes one pass in operations that are not compiled, and drops its gradients."""
        self._step(*batch.inputs).backward()
        self._step.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Frees what passes keep for the next ones."""
        if self._graph is not None:
            self._graph.reset()
        self._step.zero_grad(set_to_none=True)

    def _pass(self, part: HostBatch) -> Tensor:
        """Makes one pass, and returns the part's mean loss."""
        if self._copy is None:
            return self._backward(*part.inputs)
        if self._graph is None:
            loss, gradients = self._pass_of_copy(*part.inputs)
        else:
            loss, gradients = self._graph(*part.inputs)
        self._copy.add_gradients(gradients)
        return loss

    def _joint_pass(self, part: HostBatch, *, is_last: bool) -> Tensor:
        """Makes one pass; the last one averages the sums of all processes."""
        assert self._parallel is not None
        with lost_processes_reported(), nullcontext() if is_last else self._parallel.no_sync():
            return self._pass(part)

    def _pass_of_copy(self, *inputs: Tensor) -> Tuple[Tensor, List[Tensor]]:
        """Returns the mean loss and the gradients of the working copy, which loses them."""
        assert self._copy is not None
        loss = self._backward(*inputs)
        gradients = self._copy.gradients
        self._copy.drop_gradients()
        return loss, gradients

    def _backward(self, *inputs: Tensor) -> Tensor:
        loss = self.loss_of(*inputs)
        (loss * self._scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

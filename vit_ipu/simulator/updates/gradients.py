"""Reduction of one update's gradients over accumulation and replicas (popart optimizerdecompose.cpp)."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import Rounding, rounded, widened
from vit_ipu.simulator.enums import MeanReductionStrategy, ReductionType
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.updates.loss_scaling import AutomaticLossScale, OverflowWatch


class Reduction(NamedTuple):
    """Gradient accumulation G, number of replicas R, and how the mean is taken.

    The mean is taken while accumulating (`is_running`), afterwards by the optimizer, or not at all (not `is_mean`).
    """

    accumulation: int
    replicas: int
    is_mean: bool
    is_running: bool

    @classmethod
    def of(cls, options: Options) -> Reduction:
        training = options.Training
        mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        running = mean and strategy == MeanReductionStrategy.Running
        return cls(int(training.gradient_accumulation), int(options.replication_factor), mean, running)

    @property
    def mean_divisor(self) -> int:
        """The divisor that turns the sum into the mean, or 1 if the sum is wanted."""
        return self.accumulation * self.replicas if self.is_mean else 1


class Gradients:
    """Collects the gradients of one update.

    In exact numerics, torch's own accumulation gives the sum. With `rounding`, or if the loss scale is adjusted
    automatically, each replica accumulates separately, micro-batch by micro-batch, in the accumulator's format.
    """

    def __init__(
        self,
        parameters: Dict[str, Tensor],
        reduction: Reduction,
        accum_type: torch.dtype,
        rounding: Optional[Rounding] = None,
        automatic_loss_scale: Optional[AutomaticLossScale] = None,
        overflow: Optional[OverflowWatch] = None,
    ) -> None:
        self._parameters, self._reduction, self._rounding = parameters, reduction, rounding
        self._accum_type = accum_type if rounding is not None else None
        self._loss_scale, self._overflow = automatic_loss_scale, overflow
        self._one_by_one = rounding is not None or automatic_loss_scale is not None
        self._accumulators: List[Dict[str, Tensor]] = [{} for _ in range(reduction.replicas)]

    def take(self, number: int) -> None:
        """Accumulates the gradients that micro-batch `number` of the update left in the parameters."""
        if not self._one_by_one:
            return
        taken: Dict[str, Tensor] = {}
        step, replica = divmod(number, self._reduction.replicas)
        for name, weight in self._parameters.items():
            if weight.grad is not None:
                taken[name], weight.grad = weight.grad, None
        with torch.no_grad():
            for name, gradient in taken.items():
                if self._overflow is not None:
                    self._overflow.watch(name, gradient, 1)
                self._accumulate(self._accumulators[replica], name, gradient, step)
            if self._loss_scale is not None:
                self._loss_scale.watch(taken)

    def reduced(self) -> Dict[str, Tensor]:
        """Returns the gradients' sum over accumulation and replicas, or their running mean; clears the accumulators."""
        if not self._one_by_one:
            return self._reduced_by_torch()
        replicas, self._accumulators = self._accumulators, [{} for _ in self._accumulators]
        return {name: self._over_replicas([of[name] for of in replicas if name in of]) for name in replicas[0]}

    def _accumulate(self, accumulators: Dict[str, Tensor], name: str, gradient: Tensor, step: int) -> None:
        dtype = self._accum_type if self._accum_type is not None and self._reduction.accumulation > 1 else None
        before = accumulators.get(name)
        if before is None:
            accumulators[name] = rounded(gradient, dtype or gradient.dtype, self._rounding)
            return
        kept, new = widened(before), widened(gradient)
        running = self._reduction.is_running
        total = kept * (step / (step + 1)) + new / (step + 1) if running else kept + new
        accumulators[name] = rounded(total, before.dtype, self._rounding)

    def _over_replicas(self, of_replicas: List[Tensor]) -> Tensor:
        if len(of_replicas) == 1:
            return of_replicas[0]
        total = torch.stack([widened(tensor) for tensor in of_replicas]).sum(0)
        if self._reduction.is_running:
            total /= self._reduction.replicas
        return rounded(total, of_replicas[0].dtype, self._rounding)

    def _reduced_by_torch(self) -> Dict[str, Tensor]:
        gradients = {}
        for name, weight in self._parameters.items():
            if weight.grad is not None:
                gradients[name], weight.grad = weight.grad, None
                if self._overflow is not None:
                    micro_batches = self._reduction.accumulation * self._reduction.replicas
                    self._overflow.watch(name, gradients[name], micro_batches)
                if self._reduction.is_running:
                    gradients[name].div_(self._reduction.mean_divisor)
        return gradients

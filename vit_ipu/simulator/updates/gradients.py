"""Reduction of one update's gradients over accumulation and replicas (popart optimizerdecompose.cpp)."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import Rounding, rounded, widened
from vit_ipu.simulator.enums import MeanReductionStrategy, ReductionType
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.updates.loss_scaling import AutomaticLossScale, OverflowWatch

JOINED = {torch.float16: "all float16 weights", torch.float32: "all float32 weights"}
"""Name of the gradients of all weights of a format, as one tensor."""


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
        self._sums: Dict[str, Tensor] = {}
        self._factors: Optional[Tuple[Tensor, Tensor]] = None
        self._parts: Dict[str, List[str]] = {}
        """Names of the weights in each long gradient."""

    def stay_in_place(self, device: torch.device) -> None:
        """From here on, accumulators keep their memory, so that micro-batches can be CUDA graphs."""
        self._factors = torch.ones((), device=device), torch.ones((), device=device)

    def prepare(self, number: int) -> None:
        """Sets what `take` reads of the number of a micro-batch, outside of a CUDA graph."""
        step = number // self._reduction.replicas
        if self._factors is not None and self._reduction.is_running:
            for factor, value in zip(self._factors, _of_running_mean(step)):
                factor.fill_(value)

    def tensors(self) -> List[Tensor]:
        """Returns the tensors that `take` changes."""
        overflow = [] if self._overflow is None else self._overflow.tensors()
        return [*self._sums.values(), *(tensor for of in self._accumulators for tensor in of.values()), *overflow]

    def is_first(self, number: int) -> bool:
        """Tells whether a micro-batch is the first one whose gradients an accumulator takes in an update."""
        return number < (self._reduction.replicas if self._one_by_one else 1)

    def accumulator_of(self, number: int) -> int:
        """Returns the number of the accumulators that take the gradients of a micro-batch."""
        return number % self._reduction.replicas if self._one_by_one else 0

    def take(self, number: int) -> None:
        """Accumulates the gradients that micro-batch `number` of the update left in the parameters."""
        if not self._one_by_one and self._factors is None:
            return
        taken: Dict[str, Tensor] = {}
        step, replica = divmod(number, self._reduction.replicas)
        for name, weight in self._parameters.items():
            if weight.grad is not None:
                taken[name], weight.grad = weight.grad, None
        with torch.no_grad():
            if not self._one_by_one:
                self._add(taken, is_first=number == 0)
                return
            parts = None
            if self._factors is not None:
                parts, taken = taken, self._joined(taken)
            for name, gradient in taken.items():
                if self._overflow is not None:
                    self._overflow.watch(name, gradient, 1, is_first=number == 0, parts=parts)
                self._accumulate(self._accumulators[replica], name, gradient, step)
            if self._loss_scale is not None:
                self._loss_scale.watch(taken)

    def reduced(self) -> Dict[str, Tensor]:
        """Returns the gradients' sum over accumulation and replicas, or their running mean; clears the accumulators."""
        if not self._one_by_one:
            return self._reduced_by_torch()
        if self._overflow is not None:
            self._overflow.report()
        replicas = self._accumulators
        if self._factors is None:
            self._accumulators = [{} for _ in replicas]
        else:
            replicas = [self._parted(of) for of in replicas]
        return {name: self._over_replicas([of[name] for of in replicas if name in of]) for name in replicas[0]}

    def _joined(self, gradients: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Returns one long gradient for each format, so that a few kernels accumulate all weights' gradients."""
        by_format: Dict[torch.dtype, List[str]] = {}
        for name, gradient in gradients.items():
            by_format.setdefault(gradient.dtype, []).append(name)
        self._parts = {JOINED[dtype]: names for dtype, names in by_format.items()}
        return {
            JOINED[dtype]: torch.cat([gradients[name].flatten() for name in names])
            for dtype, names in by_format.items()
        }

    def _parted(self, joined: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Reverses `_joined`."""
        parts: Dict[str, Tensor] = {}
        for long, names in self._parts.items():
            sizes = [self._parameters[name].numel() for name in names]
            for name, part in zip(names, torch.split(joined[long], sizes)):
                parts[name] = part.view_as(self._parameters[name])
        return parts

    def _add(self, gradients: Dict[str, Tensor], *, is_first: bool) -> None:
        """Adds gradients to sums that keep their memory, as autograd would."""
        if is_first:
            self._sums = gradients
            return
        new = [name for name in gradients if name not in self._sums]
        old = [name for name in gradients if name in self._sums]
        torch._foreach_add_([self._sums[name] for name in old], [gradients[name] for name in old])
        self._sums.update({name: gradients[name] for name in new})

    def _accumulate(self, accumulators: Dict[str, Tensor], name: str, gradient: Tensor, step: int) -> None:
        dtype = self._accum_type if self._accum_type is not None and self._reduction.accumulation > 1 else None
        before = accumulators.get(name)
        if before is None or step == 0:
            accumulators[name] = rounded(gradient, dtype or gradient.dtype, self._rounding)
            return
        is_half = before.dtype == gradient.dtype == torch.float16
        if is_half and self._rounding is not None and before.device.type == "cpu":
            factors = _of_running_mean(step) if self._reduction.is_running else (1.0, 1.0)
            result = self._rounding.accumulate(before, gradient, factors)
        else:
            result = rounded(self._sum(widened(before), widened(gradient), step), before.dtype, self._rounding)
        in_place = self._factors is not None and result is not before
        accumulators[name] = before.copy_(result) if in_place else result

    def _sum(self, kept: Tensor, new: Tensor, step: int) -> Tensor:
        """Returns the sum, or the running mean, after `step` earlier gradients."""
        if not self._reduction.is_running:
            return kept + new
        factors = _of_running_mean(step) if self._factors is None else self._factors
        return kept * factors[0] + new * factors[1]

    def _over_replicas(self, of_replicas: List[Tensor]) -> Tensor:
        if len(of_replicas) == 1:
            return of_replicas[0]
        total = torch.stack([widened(tensor) for tensor in of_replicas]).sum(0)
        if self._reduction.is_running:
            total /= self._reduction.replicas
        return rounded(total, of_replicas[0].dtype, self._rounding)

    def _reduced_by_torch(self) -> Dict[str, Tensor]:
        gradients = dict(self._sums)
        for name, weight in self._parameters.items():
            if weight.grad is not None:
                gradients[name], weight.grad = weight.grad, None
        for name, gradient in gradients.items():
            if self._overflow is not None:
                micro_batches = self._reduction.accumulation * self._reduction.replicas
                self._overflow.watch(name, gradient, micro_batches)
            if self._reduction.is_running:
                gradient.div_(self._reduction.mean_divisor)
        if self._overflow is not None:
            self._overflow.report()
        return gradients


def _of_running_mean(step: int) -> Tuple[float, float]:
    """Returns the factors of the mean of `step` gradients, and of one more (popart popx/op/accumulatex.cpp:137-146)."""
    added = 1 / (step + 1)
    return 1 - added, added

"""How the micro-batches of an update pass through a model, forward and backward.

They pass one after the other, which computes what a pipeline computes. Faster ways that give the same results take over
where Python has no part in a pass: micro-batches together with exact numerics (merged.py), and operations that were
recorded once, on the host (recordings.py) or on a GPU (cuda_graphs.py).
"""

from __future__ import annotations

from functools import partial
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic, undispatched
from vit_ipu.simulator.execution.cuda_graphs import CudaGraphs
from vit_ipu.simulator.execution.forward import Forward
from vit_ipu.simulator.execution.merged import Merged
from vit_ipu.simulator.execution.recordings import Recordings
from vit_ipu.simulator.execution.replicas import Replicas
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.compile_checks import checks_floating_point
from vit_ipu.simulator.tracing.trace import LossId, Trace
from vit_ipu.simulator.updates.gradients import Gradients
from vit_ipu.simulator.updates.updater import Updater


class Training(NamedTuple):
    """The parts of a program that only training needs."""

    loss: LossId
    gradients: Gradients
    updater: Updater


class Passes:
    """Passes the micro-batches of updates through the model."""

    def __init__(
        self,
        forward: Forward,
        training: Training,
        options: Options,
        trace: Trace,
        device: torch.device,
        by_replica: Replicas,
        half: Optional[HalfArithmetic],
    ) -> None:
        """`half`: an IPU's numerics; None for exact ones."""
        self._forward, self._by_replica = forward, by_replica
        self._gradients, self._updater = training.gradients, training.updater
        self._loss_scale = torch.ones((), device=device)
        self._merged: Optional[Merged] = None
        self._graphs: Optional[CudaGraphs] = None
        self._recordings: Optional[Recordings] = None
        uses_python = trace.comparisons is not None or trace.host_changes or options.anchored_tensors
        if by_replica.differ or uses_python or checks_floating_point(options) or self._updater.automatic_loss_scale:
            return
        if device.type == "cuda":
            self._gradients.stay_in_place(device)
            self._graphs = CudaGraphs(device, None if half is None else half.rounding, self._state)
        elif device.type == "cpu" and not (trace.autograd_functions or trace.hooks):
            self._find_way_on_host(trace, half)

    def _find_way_on_host(self, trace: Trace, half: Optional[HalfArithmetic]) -> None:
        weights = self._by_replica.weights_of(0)
        if half is not None:
            self._gradients.stay_in_place(self._loss_scale.device)
            self._recordings = Recordings(half, weights.parameters, trace.graph, self._state)
        elif not (trace.graph.is_random or trace.mutates_buffers):
            self._merged = Merged(weights, trace.graph)

    def _state(self) -> List[Tensor]:
        """Returns the tensors that a pass changes, apart from random states."""
        return [*self._by_replica.weights_of(0).buffers.values(), *self._gradients.tensors()]

    def run(self, arguments: Arguments, micro_batches: Sequence[List[Tensor]]) -> List[List[Tensor]]:
        """Returns the outputs of each micro-batch of an update, and leaves the gradients in `Training.gradients`."""
        if self._merged is not None and self._merged.is_possible and len(micro_batches) > 1:
            outputs = self._merged.run(partial(self._forward, arguments), micro_batches, self._scale_of)
            if outputs is not None:
                return outputs
        with undispatched():
            self._loss_scale.fill_(self._updater.loss_scale)
        if self._recordings is not None:
            self._recordings.start_update()
        return [self._pass_of(arguments, inputs, number) for number, inputs in enumerate(micro_batches)]

    def _pass_of(self, arguments: Arguments, inputs: List[Tensor], number: int) -> List[Tensor]:
        """Passes micro-batch `number` of an update forward and backward; returns the outputs."""
        work = partial(self._pass, arguments, number)
        with undispatched():
            self._gradients.prepare(number)
        if self._recordings is not None:
            outputs = self._recordings.run(partial(self._forward_with_scale, arguments), inputs)
            with undispatched():
                self._gradients.take(number)
            return outputs
        if self._graphs is None:
            return work(inputs)
        key = self._gradients.accumulator_of(number), self._gradients.is_first(number)
        return self._graphs.run(key, work, inputs)

    def _pass(self, arguments: Arguments, number: int, inputs: List[Tensor]) -> List[Tensor]:
        outputs, loss = self._forward(arguments, inputs, number % self._by_replica.count)
        assert loss is not None
        if loss.requires_grad:  # false if all weights are frozen
            loss.backward(self._scale_of(loss))  # type: ignore[no-untyped-call]
        with undispatched():
            self._by_replica.gather_gradients()
            self._gradients.take(number)
        return outputs

    def _forward_with_scale(self, arguments: Arguments, inputs: List[Tensor]) -> Tuple[List[Tensor], Tensor, Tensor]:
        """Returns outputs, loss, and loss scale in the loss's format."""
        outputs, loss = self._forward(arguments, inputs)
        assert loss is not None
        return outputs, loss, self._scale_of(loss)

    def _scale_of(self, loss: Tensor) -> Tensor:
        """Returns the loss scale in the loss's format and shape."""
        if self._graphs is None and self._recordings is None:
            return torch.full_like(loss, self._updater.loss_scale)
        return self._loss_scale.to(loss.dtype).expand_as(loss)

"""The model's forward pass on the simulated IPUs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.simulator import context
from vit_ipu.simulator.execution.replicas import Replicas
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.autograd_functions import forward_gradients, without_checkpoints
from vit_ipu.simulator.tracing.comparisons import Comparisons
from vit_ipu.simulator.tracing.device_names import DeviceNames
from vit_ipu.simulator.tracing.host_state import as_before
from vit_ipu.simulator.tracing.losses import LossCatcher
from vit_ipu.simulator.tracing.trace import LossId, Trace
from vit_ipu.simulator.weights import swapped_weights


class Forward:
    """Passes a micro-batch forward through the model, as it was traced."""

    def __init__(
        self, model: nn.Module, trace: Trace, device: torch.device, by_replica: Replicas, loss: Optional[LossId]
    ) -> None:
        """`loss`: the loss of training; None in inference."""
        self._model, self._trace, self._device = model, trace, device
        self._by_replica, self._loss = by_replica, loss

    def __call__(
        self, arguments: Arguments, inputs: List[Tensor], replica: int = 0
    ) -> Tuple[List[Tensor], Optional[Tensor]]:
        """Returns the detached outputs of one micro-batch, and in training the loss."""
        micro = arguments.with_tensors(inputs)
        losses: List[Tensor] = []
        with ExitStack() as stack:
            if self._by_replica.differ:
                stack.enter_context(swapped_weights(self._model, self._by_replica.weights_of(replica)))
            session = context.Session(on_ipu=True, on_loss=losses.append)
            if self._trace.comparisons is not None:
                comparisons = stack.enter_context(Comparisons(self._trace.comparisons))
                session = replace(session, on_body=comparisons.next_body)
            stack.enter_context(context.during(session))
            if self._trace.host_changes:
                stack.enter_context(as_before(self._trace.host_changes))
            if self._trace.names_devices:
                stack.enter_context(DeviceNames(self._device))
            if self._trace.has_checkpoints:
                stack.enter_context(without_checkpoints())
            if self._trace.autograd_functions:
                stack.enter_context(forward_gradients())
            if self._loss is not None and self._loss.of_function:
                losses = stack.enter_context(LossCatcher()).losses
            result = self._model(*micro.args, **micro.kwargs)
        outputs = [tensor.detach() for tensor in flatten(result)]
        return outputs, None if self._loss is None else losses[self._loss.number]

"""Micro-batches of an update that pass through the model together, by torch.vmap.

Each operation then computes all of them at once, so that Python and torch start it once. Every micro-batch still is one
of its own: a mean over a batch remains the mean over its micro-batch. Sums of float32 are added in another order.
"""

from __future__ import annotations

import warnings
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.tracing.graph import Graph, Kind
from vit_ipu.simulator.weights import Weights

Forward = Callable[[List[Tensor]], Tuple[List[Tensor], Optional[Tensor]]]
"""Returns the outputs and the loss of a micro-batch."""

MOST_BYTES = 256 << 20
"""Bytes that the backward pass of merged micro-batches may keep. Larger operations gain nothing from being merged."""
_NO_RULE = ".*performance drop.*"
"""The warning of an operation that vmap can only compute in a loop."""


class Merged:
    """Passes micro-batches together as long as the model allows it."""

    def __init__(self, weights: Weights, graph: Graph) -> None:
        self._parameters, self._buffers = list(weights.parameters.values()), list(weights.buffers.values())
        num_bytes = sum(value.num_bytes for value in graph.values if value.kind == Kind.ACTIVATION)
        self._most = MOST_BYTES // max(1, num_bytes)
        self.is_possible = self._most > 1
        self._is_known = False
        """Whether the model has passed micro-batches together."""

    def run(
        self, forward: Forward, micro_batches: Sequence[List[Tensor]], scale_of: Callable[[Tensor], Tensor]
    ) -> Optional[List[List[Tensor]]]:
        """Adds the gradients of the losses, times `scale_of` a loss, to the weights' gradients.

        Returns the outputs of each micro-batch, or None if the model cannot run so; nothing has changed then.
        """
        collected: List[List[Tensor]] = []
        gradients = [weight.grad for weight in self._parameters]
        saved = [] if self._is_known else [tensor.clone() for tensor in self._buffers]
        versions = [tensor._version for tensor in self._buffers]
        try:
            for start in range(0, len(micro_batches), self._most):
                collected += _together(forward, micro_batches[start : start + self._most], scale_of)
            if [tensor._version for tensor in self._buffers] != versions:
                raise RuntimeError("the model changes its buffers")
        except (RuntimeError, TypeError, ValueError, IndexError, UserWarning) as error:
            logger.debug("Micro-batches cannot pass together: %s", error)
            self.is_possible = False
            for weight, gradient in zip(self._parameters, gradients):
                weight.grad = gradient
            with torch.no_grad():
                for buffer, before in zip(self._buffers, saved):
                    buffer.copy_(before)
            return None
        self._is_known = True
        return collected


def _together(
    forward: Forward, micro_batches: Sequence[List[Tensor]], scale_of: Callable[[Tensor], Tensor]
) -> List[List[Tensor]]:
    stacked = [torch.stack(list(of_all)) for of_all in zip(*micro_batches)]
    versions = [tensor._version for tensor in stacked]

    def compute(*inputs: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor]:
        outputs, loss = forward(list(inputs))
        assert loss is not None
        return tuple(outputs), loss

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_NO_RULE)
        outputs, losses = torch.vmap(compute)(*stacked)
        if [tensor._version for tensor in stacked] != versions:
            raise RuntimeError("the model changes its inputs in place")
        if losses.requires_grad:  # false if all weights are frozen
            losses.backward(scale_of(losses))  # type: ignore[no-untyped-call]
    return [list(of_one) for of_one in zip(*(output.unbind(0) for output in outputs))] or [[] for _ in micro_batches]

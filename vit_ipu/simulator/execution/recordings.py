"""Passes in an IPU's numerics on the host: the operations of the first one are recorded, and all are replayed.

One micro-batch follows the other, and torch's threads share each operation. Python threads with a micro-batch each took
a quarter longer: they wait for Python's lock after every operation.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic, undispatched
from vit_ipu.simulator.arithmetic.half_steps import NotRecordable
from vit_ipu.simulator.execution.replay import Recorder, Replay, Results
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.tracing.graph import Graph, Kind

Work = Callable[[List[Tensor]], Tuple[List[Tensor], Tensor, Tensor]]
"""Returns the outputs of a micro-batch, the loss, and the gradient of the loss."""
MOST_BYTES = 1 << 30
"""Bytes of a micro-batch's activations up to which a pass is recorded; a recording keeps all results meanwhile."""


class Recordings:
    """Computes the passes of one program, by its recorded operations if possible."""

    def __init__(
        self, half: HalfArithmetic, parameters: Dict[str, Tensor], graph: Graph, state: Callable[[], List[Tensor]]
    ) -> None:
        """`state` returns the tensors that a pass changes, apart from random states."""
        self._half, self._state = half, state
        self._trained = [weight for weight in parameters.values() if weight.requires_grad]
        self._replay: Optional[Replay] = None
        num_bytes = sum(value.num_bytes for value in graph.values if value.kind == Kind.ACTIVATION)
        self._is_possible = num_bytes <= MOST_BYTES

    def start_update(self) -> None:
        """Takes over the weights, which an update may have changed."""
        if self._replay is not None:
            with undispatched(), torch.no_grad():
                self._replay.refresh()

    def run(self, work: Work, inputs: List[Tensor]) -> List[Tensor]:
        """Returns the outputs of a micro-batch, and leaves the gradients in the weights."""
        if self._is_possible and self._replay is None:
            self._record(work, inputs)
        if self._replay is None:
            outputs, gradients = self._work(work, inputs)
        else:
            with undispatched(), torch.no_grad():
                outputs, gradients = self._replay.run(inputs)
        for weight, gradient in zip(self._trained, gradients):
            weight.grad = gradient
        return outputs

    def _work(self, work: Work, inputs: List[Tensor]) -> Results:
        outputs, loss, scale = work(inputs)
        if not loss.requires_grad:  # all weights are frozen
            return outputs, [None] * len(self._trained)
        return outputs, list(torch.autograd.grad(loss, self._trained, scale, allow_unused=True))

    def _record(self, work: Work, inputs: List[Tensor]) -> None:
        """Runs the work once, takes its effects back, and keeps its operations."""
        with undispatched(), torch.no_grad():
            inputs = [tensor.clone() for tensor in inputs]  # the work may change them
            state = self._state()
            saved = [tensor.clone() for tensor in state]
        random, roundings = torch.get_rng_state(), self._half.rounding.snapshot()
        recorder = Recorder()
        with recorder:
            results = self._work(work, inputs)
        try:
            with undispatched(), torch.no_grad():
                self._replay = Replay(self._half, recorder.calls, inputs, results)
        except NotRecordable as reason:
            self._is_possible = False
            logger.debug("A pass cannot be recorded: %s", reason)
        with undispatched(), torch.no_grad():
            for tensor, before in zip(state, saved):
                tensor.copy_(before)
        torch.set_rng_state(random)
        self._half.rounding.restore(roundings)

"""Passes in an IPU's numerics on the host: the operations of the first one are recorded, and all are replayed.

Micro-batches of an update do not depend on each other: as many are replayed at a time as torch has threads, each in one
thread, because threads that share an operation wait for each other several hundred times in a small micro-batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple

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


_OF_MICRO_BATCH, _OF_GRADIENTS = 1 << 32, 1 << 31
"""Distance between the numbers of the roundings of two micro-batches, and of a pass and its gradients.

Every micro-batch so has random bits of its own, whichever is computed first.
"""


class Recordings:
    """Computes the passes of one program, by its recorded operations if possible."""

    def __init__(
        self, half: HalfArithmetic, parameters: Dict[str, Tensor], graph: Graph, state: Callable[[], List[Tensor]]
    ) -> None:
        """`state` returns the tensors that a pass changes, apart from random states."""
        self._half, self._state = half, state
        self._trained = [weight for weight in parameters.values() if weight.requires_grad]
        self._is_random = graph.is_random
        self._replay: Optional[Replay] = None
        num_bytes = sum(value.num_bytes for value in graph.values if value.kind == Kind.ACTIVATION)
        self._is_possible = num_bytes <= MOST_BYTES

    def run(self, work: Work, micro_batches: Sequence[List[Tensor]], take: Callable[[int], None]) -> List[List[Tensor]]:
        """Returns the outputs of the micro-batches of an update.

        `take` is called with the number of each, in order, when the gradients are in the weights.
        """
        if self._is_possible and self._replay is None:
            self._record(work, micro_batches[0])
        rounding, collected = self._half.rounding, []
        start = rounding.num_operations
        for number, (outputs, gradients) in enumerate(self._results(work, micro_batches)):
            rounding.num_operations = start + number * _OF_MICRO_BATCH + _OF_GRADIENTS
            for weight, gradient in zip(self._trained, gradients):
                weight.grad = gradient
            take(number)
            collected.append(outputs)
        rounding.num_operations = start + len(micro_batches) * _OF_MICRO_BATCH
        return collected

    def _results(self, work: Work, micro_batches: Sequence[List[Tensor]]) -> Iterator[Results]:
        start = self._half.rounding.num_operations
        numbers = [start + number * _OF_MICRO_BATCH for number in range(len(micro_batches))]
        if self._replay is None:
            for inputs, number in zip(micro_batches, numbers):
                self._half.rounding.num_operations = number
                yield self._work(work, inputs)
            return
        with undispatched(), torch.no_grad():
            self._replay.refresh()
        in_order = self._is_random or self._replay.changes_state
        threads = 1 if in_order else min(torch.get_num_threads(), len(micro_batches))
        if threads == 1:
            for inputs, number in zip(micro_batches, numbers):
                with undispatched():
                    results = self._replay.run(inputs, number)
                yield results
            return
        yield from _in_threads(self._replay, list(zip(micro_batches, numbers)), threads)

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


def _in_threads(replay: Replay, work: Sequence[Tuple[List[Tensor], int]], threads: int) -> Iterator[Results]:
    """Yields the results of a replay for each micro-batch and number of its roundings, in order."""
    started: Deque[Any] = deque()  # of futures
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in work:
                if len(started) > threads:  # more would only wait, with their results in memory
                    yield started.popleft().result()
                started.append(pool.submit(replay.run, *item))
            while started:
                yield started.popleft().result()
    finally:
        torch.set_num_threads(torch.get_num_threads())  # for threads that torch starts later

"""CUDA graphs of micro-batches: the first is recorded, the others are replayed.

A pass over a small micro-batch has hundreds of kernels that take less time than Python takes to launch them. A replay
launches all of them at once, and computes the same bits.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, Hashable, List, NamedTuple, Optional

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import undispatched
from vit_ipu.simulator.arithmetic.rounding import Rounding
from vit_ipu.simulator.logs import logger

Work = Callable[[List[Tensor]], List[Tensor]]
"""Computes the outputs of a micro-batch from its inputs; what else it changes must be tensors that stay in place."""


_MODE = "capture_error_mode"
_ALONE: Dict[str, Any] = (
    {_MODE: "thread_local"} if _MODE in inspect.signature(torch.cuda.graph.__init__).parameters else {}
)
"""Lets other threads, such as a loader's, call CUDA during a recording; torch 2.0 lacks the option."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: List[Tensor]
    outputs: List[Tensor]
    num_roundings: int


class CudaGraphs:
    """The graphs of one program, by what distinguishes their work, such as the first micro-batch of an update."""

    def __init__(self, device: torch.device, rounding: Optional[Rounding], state: Callable[[], List[Tensor]]) -> None:
        """`state` returns the tensors that work reads and changes, apart from random states."""
        self._device, self._rounding, self._state = device, rounding, state
        self._recorded: Dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_possible = True

    def run(self, key: Hashable, work: Work, inputs: List[Tensor]) -> List[Tensor]:
        """Returns the outputs of `work`, by a graph if possible; a key must always stand for the same work."""
        if self._is_possible and key not in self._recorded:
            self._record(key, work, inputs)
        if not self._is_possible:
            return work(inputs)
        with undispatched(), torch.no_grad():
            recorded = self._recorded[key]
            for fixed, given in zip(recorded.inputs, inputs):
                fixed.copy_(given)
            if self._rounding is not None:
                self._rounding.replay(recorded.graph.replay, recorded.num_roundings)
            else:
                recorded.graph.replay()
            return [output.clone() for output in recorded.outputs]

    def _record(self, key: Hashable, work: Work, inputs: List[Tensor]) -> None:
        """Runs the work once, because libraries allocate memory at first, takes its effects back, and records it."""
        with undispatched(), torch.no_grad():
            fixed = [tensor.clone() for tensor in inputs]
            state = self._state()
            saved = [tensor.clone() for tensor in state]
        random = torch.cuda.get_rng_state(self._device)
        roundings = None if self._rounding is None else self._rounding.snapshot()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work(fixed)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph, outputs = torch.cuda.CUDAGraph(), []
        try:
            if self._rounding is not None:
                self._rounding.start_recording(self._device)
            with torch.cuda.graph(graph, self._pool, self._stream, **_ALONE):
                outputs = work(fixed)
        except RuntimeError as error:  # work that waits for the device cannot be recorded
            self._is_possible = False
            logger.debug("A micro-batch cannot be recorded as a CUDA graph: %s", error)
        num_roundings = 0 if self._rounding is None else self._rounding.stop_recording()
        with undispatched(), torch.no_grad():
            for tensor, before in zip(state, saved):
                tensor.copy_(before)
        torch.cuda.set_rng_state(random, self._device)
        if self._rounding is not None and roundings is not None:
            self._rounding.restore(roundings)
        if self._is_possible:
            self._recorded[key] = _Recorded(graph, fixed, outputs, num_roundings)

"""CUDA graphs: a function's kernels, recorded once and launched together, without gaps between them."""

from __future__ import annotations

import inspect
import logging
from typing import Any, Callable, Dict, Generic, List, Optional, Tuple, TypeVar

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
Result = TypeVar("Result")
_Key = Tuple[Tuple[object, ...], ...]
_MODE = "capture_error_mode"
_ALONE: Dict[str, Any] = (
    {_MODE: "thread_local"} if _MODE in inspect.signature(torch.cuda.graph.__init__).parameters else {}
)
"""Lets other threads, such as a loader's, call CUDA during a recording; torch 2.0 lacks the option."""


class Graphed(Generic[Result]):
    """A function of tensors on a GPU that is recorded, for each shape of its inputs, at the second call.

    The first call compiles what there is to compile. Results lie in memory that the next call overwrites. A function
    that cannot be recorded, or for whose recording the memory is too small, is called as it is.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._seen: List[_Key] = []
        self._recordings: Dict[_Key, Optional[_Recording[Result]]] = {}

    def __call__(self, *inputs: Tensor) -> Result:
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._seen:
            self._seen.append(key)
            return self._function(*inputs)
        if key not in self._recordings:
            self._recordings[key] = self._recorded(inputs)
        recording = self._recordings[key]
        return self._function(*inputs) if recording is None else recording(*inputs)

    def _recorded(self, inputs: Tuple[Tensor, ...]) -> Optional[_Recording[Result]]:
        random = torch.cuda.get_rng_state()
        try:
            return _Recording(self._function, inputs)
        except RuntimeError as error:
            _LOGGER.debug("a pass cannot be recorded as a CUDA graph: %s", error)
            torch.cuda.set_rng_state(random)
            return None

    def reset(self) -> None:
        """Frees the recordings and their memory."""
        self._seen.clear()
        self._recordings.clear()


class _Recording(Generic[Result]):
    def __init__(self, function: Callable[..., Result], inputs: Tuple[Tensor, ...]) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the recording's memory is apart from that of calls without one
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, **_ALONE):
            self._result = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Result:
        for recorded, given in zip(self._inputs, inputs):
            recorded.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result

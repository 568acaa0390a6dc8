"""Tensors that a traced model marks for overlapped input and output, and PopTorch's checks of these marks.

The checks come from poptorch/source/OverlappedIO.cpp and Compiler.cpp:1766-1783.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple

from torch import Tensor

from vit_ipu.simulator.enums import OutputMode, OverlapMode
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.options.options import Options

_NOT_THE_ONLY_OP = (
    "poptorch.set_overlap_for_input must be the only op applied to an input. This is not the case for input {} to the "
    "model."
)
_NOT_AN_INPUT = "poptorch.set_overlap_for_input applied on a node which is not a tensor input to the model."
_NOT_AN_OUTPUT = "poptorch.set_overlap_for_output applied on a node which is not a tensor output to the model."
_RETURNED_TWICE = (
    "poptorch.set_overlap_for_output cannot be used with a tensor that is returned twice. Please check all returned "
    "tensors including those nested in tuples/lists."
)
_PIPELINED = (
    "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using only one IPU, please switch to "
    "poptorch.ShardedExecution."
)
_NO_IO_TILES = (
    "No IO tiles allocated. You must allocate at least 32 IO tiles using poptorch.Options().TensorLocations.numIOTiles."
)
_OUTPUT_MODE = (
    "Unsupported output mode for overlapped IO. Please switch output mode to poptorch.OutputMode.All or "
    "poptorch.OutputMode.Sum."
)


class _Mark(NamedTuple):
    """A marked tensor, and the tensor that the model uses in its place from then on."""

    source: Tensor
    marked: Tensor
    mode: OverlapMode
    is_input: bool


class Overlaps:
    """The tensors that a traced model marks, and how often the model's operations use its inputs."""

    def __init__(self) -> None:
        self._inputs: List[Tensor] = []
        self._uses: List[int] = []
        self._marks: List[_Mark] = []

    def begin(self, inputs: List[Tensor]) -> None:
        """Records the tensors that the model is called with."""
        self._inputs, self._uses = inputs, [0] * len(inputs)

    def use(self, arguments: Any) -> None:
        """Counts the uses of the model's inputs among the arguments of an operation."""
        used = {id(tensor) for tensor in flatten(arguments)}
        for index, tensor in enumerate(self._inputs):
            self._uses[index] += id(tensor) in used

    def mark(self, source: Tensor, marked: Tensor, mode: OverlapMode, *, is_input: bool) -> None:
        """Records that the model marks `source` and uses `marked` in its place from now on."""
        self._marks.append(_Mark(source, marked, mode, is_input))

    def check(self, outputs: Any, options: Options) -> None:
        """Raises Error if PopTorch would not compile the marks of a model that returns `outputs`."""
        if not self._marks:
            return
        returned = flatten(outputs)
        self._check_inputs(returned)
        self._check_outputs(returned)
        if returned and any(mark.mode != OverlapMode.NoOverlap for mark in self._marks):
            _check_options(options)

    def _check_inputs(self, returned: List[Tensor]) -> None:
        marked = [mark.source for mark in self._marks if mark.is_input]
        for index, (tensor, uses) in enumerate(zip(self._inputs, self._uses)):
            if _count(tensor, marked) and uses + _count(tensor, returned) > 1:
                raise cpp_error(_NOT_THE_ONLY_OP.format(index + 1))

    def _check_outputs(self, returned: List[Tensor]) -> None:
        for mark in self._marks:
            if not mark.is_input and _count(mark.marked, returned) and self._times_returned(mark.source, returned) > 1:
                raise cpp_error(_RETURNED_TWICE)
        for mark in self._marks:
            if mark.is_input and not _count(mark.source, self._inputs):
                raise cpp_error(_NOT_AN_INPUT)
            if not mark.is_input and not _count(mark.marked, returned):
                raise cpp_error(_NOT_AN_OUTPUT)

    def _times_returned(self, tensor: Tensor, returned: List[Tensor]) -> int:
        """Counts how often a tensor is returned, marked or not."""
        marked = [mark.marked for mark in self._marks if not mark.is_input and mark.source is tensor]
        return _count(tensor, returned) + sum(self._times_returned(other, returned) for other in marked)


def _check_options(options: Options) -> None:
    if options._execution_strategy.backendOptions()["execution_mode"] == 0:
        raise cpp_error(_PIPELINED)
    if not options.TensorLocations.exists("numIOTiles"):
        raise cpp_error(_NO_IO_TILES)
    if options.output_mode not in (OutputMode.All, OutputMode.Sum):
        raise cpp_error(_OUTPUT_MODE)


def _count(tensor: Tensor, tensors: List[Tensor]) -> int:
    return sum(other is tensor for other in tensors)

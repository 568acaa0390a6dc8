"""Input and output that overlap with computation (python/ops.py:481-538).

Overlap changes when data is copied, not what is computed. The functions return the tensors; when a model is compiled,
the simulator checks the marked tensors as in poptorch/source/OverlappedIO.cpp and Compiler.cpp:1766-1783.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.enums import OverlapMode
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.nested import map_tensors


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Marks model inputs, in any structure, whose copying is to overlap with computation; returns the inputs."""
    return map_tensors(input_tensors, lambda tensor: _marked(tensor, mode, is_input=True))


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Marks model outputs, in any structure, whose copying is to overlap with computation; returns the outputs."""
    return map_tensors(output_tensors, lambda tensor: _marked(tensor, mode, is_input=False))


def _marked(tensor: Tensor, mode: OverlapMode, *, is_input: bool) -> Tensor:
    if not isinstance(tensor, Tensor):  # from a user's custom parser
        kind = "inputs" if is_input else "outputs"
        raise error(f"You may only set overlap for torch.tensor {kind}. {type(tensor)} is not supported.")
    mode = OverlapMode(mode.value)
    marked = tensor.view_as(tensor) if context.current.on_ipu else tensor
    if context.current.trace is not None:
        context.current.trace.overlaps.mark(tensor, marked, mode, is_input=is_input)
    return marked

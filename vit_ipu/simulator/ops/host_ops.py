"""Operations that PopTorch runs on the host, and custom operations written in C++ (python/ops.py:779-1012)."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from vit_ipu.simulator import context
from vit_ipu.simulator.nested import as_list

_ON_IPU = {torch.float64: torch.float32}
"""The formats of results, such as NumPy's, that an IPU lacks."""

Attributes = Dict[str, Union[float, int, str, List[Any], Tuple[Any, ...]]]


class CPU:
    """Calls a function on the host, in the middle of a model's forward. For inference only, as in PopTorch."""

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        """Takes a callable on tensors, and its name `ID`; the parameters of a module become constants."""
        self._layer_to_call, self._ID = layer_to_call, ID
        if isinstance(layer_to_call, nn.Module):
            layer_to_call.requires_grad_(False)
        self.in_shapes: Optional[List[torch.Size]] = None
        self.out_shapes: Optional[List[torch.Size]] = None
        self.inputs: Optional[List[Tensor]] = None
        self.outputs: Optional[List[Tensor]] = None

    def registerPersistentData(self) -> None:
        """Creates the buffers that `execute` reads and writes, with the shapes of the last call."""
        self.inputs = [torch.zeros(shape) for shape in self.in_shapes or ()]
        self.outputs = [torch.zeros(shape) for shape in self.out_shapes or ()]

    def execute(self) -> None:
        """Calls the function on the buffers."""
        for buffer, output in zip(self.outputs or (), as_list(self._layer_to_call(*self.inputs or ()))):
            buffer.copy_(output)

    def __call__(self, *input: Tensor, **kwargs: Any) -> Any:
        """Returns the function's outputs: one tensor, or a list of tensors; keyword arguments are not passed on."""
        if context.current.trace is not None and context.current.trace.is_training:
            raise NotImplementedError(
                f"poptorch.CPU in training is not simulated (the CPU op {self._ID!r}): PopTorch supports CPU ops "
                "in inference only"
            )
        result = self._on_host(input) if context.current.on_ipu else self._layer_to_call(*input)
        outputs = as_list(result)
        self.in_shapes = [tensor.shape for tensor in input]
        self.out_shapes = [tensor.shape for tensor in outputs]
        return outputs if isinstance(result, (list, tuple)) else outputs[0]

    def _on_host(self, inputs: Sequence[Tensor]) -> Any:
        """Returns the function's outputs on the inputs' device; while a model is traced, the inputs are zeros."""
        is_traced = context.current.trace is not None
        with context.on_host():
            device = inputs[0].device if inputs else torch.device("meta" if is_traced else "cpu")
            copies = [torch.zeros(t.shape, dtype=t.dtype) if is_traced else t.detach().cpu().clone() for t in inputs]
            result = self._layer_to_call(*copies)
            moved = [tensor.to(device, _ON_IPU.get(tensor.dtype)) for tensor in as_list(result)]
        return moved if isinstance(result, (list, tuple)) else moved[0]


def custom_op(
    inputs: Tuple[Tensor, ...],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Tuple[Tensor, ...],
    attributes: Optional[Attributes] = None,
) -> List[Tensor]:
    """Calls a PopART operation written in C++; on the host, returns zeros like `example_outputs`, as in PopTorch.

    Raises ValueError for attributes that PopTorch rejects. On the IPU, raises NotImplementedError, because the
    simulator cannot run Poplar code.
    """
    for key, value in (attributes or {}).items():
        _check_attribute(key, value)
    if context.current.on_ipu:
        raise NotImplementedError(f"poptorch.custom_op is not simulated (the custom op {name!r} of domain {domain!r})")
    return [torch.zeros_like(output, requires_grad=output.requires_grad) for output in example_outputs]


def _check_attribute(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ValueError("All attribute keys must be strings.")
    if not isinstance(value, (float, int, str, list, tuple)):
        raise ValueError("Attribute values must be floats, ints, strings or a list/tuple of float, ints of strings.")
    elements = value if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(element, type(elements[0])) for element in elements):
        raise ValueError("The types in a list/tuple attribute must all be the same.")
    for text in (key, *elements):
        if isinstance(text, str) and not text.isascii():
            raise ValueError(f"{text} contains non-ASCII characters.")

"""A model's parameters and buffers by name, and their replacement by other tensors while the model runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple

from torch import Tensor, nn

from vit_ipu.simulator.errors import error


class Weights:
    """Parameters and buffers by their first name; a tensor that a model holds twice is listed once."""

    def __init__(self, parameters: Dict[str, Tensor], buffers: Dict[str, Tensor]) -> None:
        self.parameters, self.buffers = parameters, buffers

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """Returns the model's own parameters and buffers."""
        return cls(dict(model.named_parameters()), dict(model.named_buffers()))

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """Returns the result of `function` for each tensor; a parameter requires gradients if the original does."""
        return Weights(
            {n: nn.Parameter(function(t.detach()), t.requires_grad) for n, t in self.parameters.items()},
            {n: function(t) for n, t in self.buffers.items()},
        )

    def items(self) -> Iterator[Tuple[str, Tensor]]:
        yield from self.parameters.items()
        yield from self.buffers.items()

    def tensors(self) -> List[Tensor]:
        return [tensor for _, tensor in self.items()]


def _raise(refused: Exception) -> None:
    raise refused


@contextmanager
def swapped_weights(model: nn.Module, weights: Weights, refuse: Callable[[Exception], None] = _raise) -> Iterator[None]:
    """Gives the model `weights` in place of its own tensors inside the `with` block.

    `refuse` receives an Error for each of `weights` that the model replaced or removed. It raises by default.
    """
    lent = dict(weights.items())
    places = list(_places(model))
    own = [registry[key] for registry, key, _ in places]
    for registry, key, name in places:
        registry[key] = lent[name]
    try:
        yield
        for registry, key, name in places:
            if registry.get(key) is not lent[name]:
                refuse(_replaced(name, is_buffer=name in weights.buffers, is_removed=key not in registry))
    finally:
        for (registry, key, _), tensor in zip(places, own):
            registry[key] = tensor


@contextmanager
def in_modes(modes: Dict[nn.Module, bool]) -> Iterator[None]:
    """Sets each module to its given mode, training or not, inside the `with` block; then restores its old mode."""
    before = {module: module.training for module in modes}
    _set_modes(modes)
    try:
        yield
    finally:
        _set_modes(before)


def _set_modes(modes: Dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _places(model: nn.Module) -> Iterator[Tuple[Dict[str, Any], str, str]]:
    """Yields each dictionary and key that holds a parameter or buffer, with the tensor's first name."""
    names: Dict[int, str] = {}
    for prefix, module in model.named_modules():
        for registry in (module._parameters, module._buffers):
            for key, tensor in registry.items():
                if tensor is not None:
                    name = names.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    yield registry, key, name


def _replaced(name: str, *, is_buffer: bool, is_removed: bool) -> Exception:
    kind = "Buffer" if is_buffer else "Parameter"
    if is_removed:
        return error(f"{kind} {name} is removed from the model when calling the forward method.")
    return error(
        f"{kind} {name} is reassigned within the model when calling the forward method. This is not supported. "
        f"Consider using self.{name}.copy_(src) to copy data from a source tensor, where src is the name of the source "
        "tensor."
    )

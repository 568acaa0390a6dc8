"""What wrapping for training makes of the user's model: its weights are copied to the host before they are read.

PopTorch changes the class of the model, its parameters and its buffers in place (python/_poplar_executor.py:230-330).
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


def is_wrapped(model: nn.Module) -> bool:
    """Whether a training executor wraps the model."""
    return isinstance(model, _Wrapped)


class _Wrapped:
    """Marks the class that a wrapped model is given."""


def wrap(model: nn.Module, executor: Any) -> None:
    """The model's weights are copied to the host before they are read; it does not keep the executor alive."""
    owner = weakref.ref(executor)

    def copy_if_needed() -> bool:
        parent = owner()
        return parent.copyWeightsToHostIfNeeded() if parent is not None else False

    class PoptorchModel(type(model), _Wrapped):  # type: ignore[misc]
        def copyWeightsToHostIfNeeded(self) -> bool:
            return copy_if_needed()

        def destroy(self) -> None:
            parent = owner()
            if parent is not None:
                parent.destroy()

        def __getattribute__(self, name: str) -> Any:
            if name == "_host_weights_version":
                parent = owner()
                return parent._host_weights_version if parent is not None else None
            if name in ("_buffers", "_parameters", "forward"):
                copy_if_needed()
            return object.__getattribute__(self, name)

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            return OrderedDict((name, _unwrapped(tensor)) for name, tensor in state.items())

    class PoptorchParameter(nn.Parameter):
        def __getattribute__(self, name: str) -> Any:
            copy_if_needed()
            return object.__getattribute__(self, name)

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    class PoptorchBuffer(Tensor):
        def __getattribute__(self, name: str) -> Any:
            copy_if_needed()
            return object.__getattribute__(self, name)

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    for parameter in model.parameters():
        parameter.__class__ = PoptorchParameter
    for buffer in model.buffers():
        buffer.__class__ = PoptorchBuffer
    PoptorchModel.__name__ = "Poptorch" + type(model).__name__
    model.__class__ = PoptorchModel


def unwrap(model: nn.Module) -> None:
    model.__class__ = type(model).__mro__[1]
    for parameter in model.parameters():
        parameter.__class__ = nn.Parameter
    for buffer in model.buffers():
        buffer.__class__ = Tensor


def _unwrapped(tensor: Any) -> Any:
    """A shallow copy of plain type, so that it can be saved without the simulator."""
    return tensor.detach().as_subclass(Tensor) if isinstance(tensor, Tensor) else tensor


def shallow_copy(model: nn.Module) -> nn.Module:
    """What the executor calls: later changes of plain attributes of the model do not reach it."""
    return copy.copy(model)

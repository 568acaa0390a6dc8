"""Wraps the user's model for training, so that its weights are copied to the host before they are read.

PopTorch changes the class of the model, its parameters and its buffers in place (python/_poplar_executor.py:230-330).
Copies made by `copy.copy` stay wrapped; pickles and deep copies are plain, so that they can be read without PopTorch.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.simulator.errors import error


def is_wrapped(model: nn.Module) -> bool:
    """Tells whether a training executor wraps the model."""
    return isinstance(model, _Wrapped)


class _Wrapped:
    """Marks the class of a wrapped model."""


def wrap(model: nn.Module, executor: Any) -> None:
    """Changes the model so that its weights are copied to the host before they are read.

    The wrapped model does not keep the executor alive.
    """
    owner = weakref.ref(executor)

    def copy_if_needed() -> bool:
        parent = owner()
        return parent.copyWeightsToHostIfNeeded() if parent is not None else False

    _check_buffers(model)
    parameter_class = _tensor_class("PoptorchParameter", nn.Parameter, _plain_parameter, copy_if_needed)
    for parameter in model.parameters():
        parameter.__class__ = parameter_class
    buffer_class = _tensor_class("PoptorchBuffer", Tensor, _unwrapped, copy_if_needed)
    for buffer in model.buffers():
        buffer.__class__ = buffer_class
    model.__class__ = _model_class(type(model), owner, copy_if_needed)


def _model_class(base: Any, owner: Callable[[], Any], copy_if_needed: Callable[[], bool]) -> Any:
    """Returns the class of a wrapped model; `owner` returns the executor while the executor lives."""

    class PoptorchModel(base, _Wrapped):  # type: ignore[misc]
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

        def __copy__(self) -> Any:
            return _with_class(self, type(self))

        def __reduce_ex__(self, protocol: Any) -> Any:
            copy_if_needed()
            plain = _with_class(self, base)
            return plain.__reduce_ex__(1)  # later protocols refuse a class that is not the object's

    PoptorchModel.__name__ = "Poptorch" + base.__name__
    return PoptorchModel


def _tensor_class(name: str, base: Any, plain: Callable[[Any], Any], copy_if_needed: Callable[[], bool]) -> Any:
    """Returns the class of a wrapped model's parameters or buffers; `plain` returns an unwrapped copy of a tensor."""

    class PoptorchTensor(base):  # type: ignore[misc]
        def __getattribute__(self, attribute: str) -> Any:
            copy_if_needed()
            return object.__getattribute__(self, attribute)

        def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
            memo[id(self)] = copy.deepcopy(plain(self), memo)
            return memo[id(self)]

        def __reduce_ex__(self, protocol: Any) -> Any:
            return plain(self).__reduce_ex__(protocol)

        __torch_function__ = torch._C._disabled_torch_function_impl

    PoptorchTensor.__name__ = name
    return PoptorchTensor


def unwrap(model: nn.Module) -> None:
    """Gives the model, its parameters and its buffers their original classes again."""
    model.__class__ = type(model).__mro__[1]
    for parameter in model.parameters():
        parameter.__class__ = nn.Parameter
    for buffer in model.buffers():
        buffer.__class__ = Tensor


_SetAside = Tuple[type, List[Tuple[Tensor, type]]]
_set_aside: weakref.WeakKeyDictionary[nn.Module, _SetAside] = weakref.WeakKeyDictionary()


def unwrapModelIfNecessary(model: nn.Module) -> None:
    """Unwraps a wrapped model until `rewrapModelIfNecessary` is called (python/_impl.py:378-394)."""
    if is_wrapped(model):
        tensors = [*model.parameters(), *model.buffers()]
        _set_aside[model] = type(model), [(tensor, type(tensor)) for tensor in tensors]
        unwrap(model)


def rewrapModelIfNecessary(model: nn.Module) -> None:
    """Gives the model and its tensors the classes again that `unwrapModelIfNecessary` removed."""
    if model in _set_aside:
        kind, tensors = _set_aside.pop(model)
        for tensor, kind_of_tensor in tensors:
            tensor.__class__ = kind_of_tensor
        model.__class__ = kind


def restored(model: Any) -> Any:
    """Returns the model as it is.

    Models that PopTorch pickled name this function `poptorch._impl._restoreWrapperIfNecessary`.
    """
    return model


def _check_buffers(model: nn.Module) -> None:
    for buffer in model.buffers():
        if type(buffer) is not Tensor:
            raise error(f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})")


def _with_class(model: nn.Module, kind: type) -> Any:
    """Returns a shallow copy of the model as an instance of `kind`."""
    other: Any = object.__new__(kind)
    other.__dict__.update(model.__dict__)
    return other


def _plain_parameter(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(_unwrapped(parameter), parameter.requires_grad)


def _unwrapped(tensor: Any) -> Any:
    """Returns a shallow copy of plain type, which can be saved without the simulator's classes."""
    return tensor.detach().as_subclass(Tensor) if isinstance(tensor, Tensor) else tensor

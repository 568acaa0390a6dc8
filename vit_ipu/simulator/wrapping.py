"""What wrapping for training makes of the user's model: its weights are copied to the host before they are read.

PopTorch changes the class of the model, its parameters and its buffers in place (python/_poplar_executor.py:230-330).
Copies made by `copy.copy` stay wrapped; what is pickled or deep-copied is plain, so that it can be read without
PopTorch.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from typing import Any, Dict

import torch
from torch import Tensor, nn

from vit_ipu.simulator.errors import error


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

        def __copy__(self) -> Any:
            return _with_class(self, type(self))

        def __reduce_ex__(self, protocol: Any) -> Any:
            copy_if_needed()
            plain = _with_class(self, type(self).__mro__[1])
            return plain.__reduce_ex__(1)  # later protocols refuse to name another class than the object's

    class PoptorchParameter(nn.Parameter):
        def __getattribute__(self, name: str) -> Any:
            copy_if_needed()
            return object.__getattribute__(self, name)

        def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
            memo[id(self)] = copy.deepcopy(_plain_parameter(self), memo)
            return memo[id(self)]

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_parameter(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    class PoptorchBuffer(Tensor):
        def __getattribute__(self, name: str) -> Any:
            copy_if_needed()
            return object.__getattribute__(self, name)

        def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
            memo[id(self)] = copy.deepcopy(_unwrapped(self), memo)
            return memo[id(self)]

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _unwrapped(self).__reduce_ex__(protocol)

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    _check_buffers(model)
    for parameter in model.parameters():
        parameter.__class__ = PoptorchParameter
    for buffer in model.buffers():
        buffer.__class__ = PoptorchBuffer
    PoptorchModel.__name__ = "Poptorch" + type(model).__name__
    model.__class__ = PoptorchModel


def unwrap(model: nn.Module) -> None:
    """Gives the model, its parameters and its buffers their own classes again."""
    model.__class__ = type(model).__mro__[1]
    for parameter in model.parameters():
        parameter.__class__ = nn.Parameter
    for buffer in model.buffers():
        buffer.__class__ = Tensor


def restored(model: Any) -> Any:
    """What a model that PopTorch pickled names as `poptorch._impl._restoreWrapperIfNecessary`: the model as it is."""
    return model


def shallow_copy(model: nn.Module) -> nn.Module:
    """What the executor calls: later changes of plain attributes of the model do not reach it."""
    return copy.copy(model)


def _check_buffers(model: nn.Module) -> None:
    for buffer in model.buffers():
        if type(buffer) is not Tensor:
            raise error("All buffers must be an instance of torch.Tensor (Got {})".format(type(buffer)))


def _with_class(model: nn.Module, kind: type) -> Any:
    """A shallow copy of the model as an instance of `kind`."""
    other: Any = object.__new__(kind)
    other.__dict__.update(model.__dict__)
    return other


def _plain_parameter(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(_unwrapped(parameter), parameter.requires_grad)


def _unwrapped(tensor: Any) -> Any:
    """A shallow copy of plain type, so that it can be saved without the simulator."""
    return tensor.detach().as_subclass(Tensor) if isinstance(tensor, Tensor) else tensor

"""Translates the device "ipu" in user code to the device on which the simulator keeps the tensors of IPUs.

PyTorch knows the name "ipu" but cannot make tensors there. The simulator keeps IPU tensors on "meta" while a model is
traced, and on the machine's device while the model runs.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

IPU = torch.device("ipu", 0)

# Functions that torch 2.0.1 takes for constructors with an argument `device`.
_WITHOUT_DEVICE = (torch.fill, torch.vander)

# The properties by which a tensor on an IPU states its device.
_PROPERTIES: Dict[Any, Any] = {
    Tensor.device: IPU,
    Tensor.is_ipu: True,
    Tensor.is_meta: False,
    Tensor.is_cpu: False,
    Tensor.is_cuda: False,
}


_TO_IPU = getattr(Tensor, "ipu")  # noqa: B009 (torch's own type stubs lack it)


class NewTensors(DeviceContext):  # type: ignore[no-untyped-call]
    """A mode in which new tensors are on a device: torch's own mode, which fails for two functions in torch 2.0.1."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if func in _WITHOUT_DEVICE:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


class DeviceNames(TorchFunctionMode):
    """A mode in which "ipu" means `real`, and a tensor on `real` gives "ipu:0" as its device.

    `used` tells whether the model has depended on this translation. A model whose trace did not use the translation
    runs without the mode.
    """

    def __init__(self, real: torch.device) -> None:
        super().__init__()
        self._real = real
        self.used = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._get(func, args)
        if func is _TO_IPU:
            self.used = True
            return args[0].to(self._real)
        if func is torch.device:
            return func(*args, **kwargs)
        if any(_is_ipu(value) for value in args) or any(_is_ipu(value) for value in kwargs.values()):
            self.used = True
            args = tuple(self._real if _is_ipu(value) else value for value in args)
            kwargs = {key: self._real if _is_ipu(value) else value for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _get(self, func: Callable[..., Any], args: Tuple[Any, ...]) -> Any:
        asked = getattr(func, "__self__", None)
        if asked not in _PROPERTIES:
            return func(*args)
        self.used = True
        on_ipu = args[0].device.type == self._real.type  # function modes are off in this method
        return _PROPERTIES[asked] if on_ipu else func(*args)


def _is_ipu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "ipu"
    return isinstance(value, str) and value.partition(":")[0] == "ipu"

"""Replacement of number formats in the calls of torch functions that a model makes."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SHORTHANDS = {Tensor.half: torch.float16, Tensor.double: torch.float64}
"""Methods that convert to one format."""

_FROM_HOST = (torch.tensor, torch.as_tensor, Tensor.to, getattr(Tensor, "ipu"))  # noqa: B009 (torch's stubs lack it)
"""Functions that may bring a value of any format, such as NumPy's float64, from the host."""


class ReplacedFormats(TorchFunctionMode):
    """A mode in which a model that asks for a format of `replacements` gets the format's replacement.

    `on_use` is called each time the model asks for such a format.
    """

    def __init__(
        self, replacements: Dict[torch.dtype, torch.dtype], on_use: Optional[Callable[[], None]] = None
    ) -> None:
        super().__init__()
        self._replacements, self._on_use = replacements, on_use

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if _SHORTHANDS.get(func) in self._replacements:
            func, args = Tensor.to, (*args, _SHORTHANDS[func])
        args = tuple(self._replaced(arg) for arg in args)
        result = func(*args, **{key: self._replaced(value) for key, value in (kwargs or {}).items()})
        return result.to(self._replaced(result.dtype)) if func in _FROM_HOST else result

    def _replaced(self, value: Any) -> Any:
        if not isinstance(value, torch.dtype) or value not in self._replacements:
            return value
        if self._on_use is not None:
            self._on_use()
        return self._replacements[value]

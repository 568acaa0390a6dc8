"""Casts of weights to the format of the activations if the two formats differ.

PopTorch casts in linear layers, convolutions and normalisations (popart_canonicalization, castWeightAndBias).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FORMATS = (torch.float16, torch.float32, torch.float64)
_POSITIONS: Dict[Callable[..., Any], Tuple[int, int]] = {
    F.linear: (1, 2),
    F.layer_norm: (2, 3),
    F.group_norm: (2, 3),
    F.batch_norm: (3, 4),
}
_POSITIONS.update((getattr(F, f"conv{kind}{n}d"), (1, 2)) for kind in ("", "_transpose") for n in (1, 2, 3))


class MixedFormats(TorchFunctionMode):
    """Casts weight and bias of the functions in `_POSITIONS` to the format of the function's input."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        positions = _POSITIONS.get(func)
        if positions is not None and args and args[0].dtype in _FORMATS:
            dtype = args[0].dtype
            args = tuple(_cast(arg, dtype) if n in positions else arg for n, arg in enumerate(args))
            kwargs = {key: _cast(v, dtype) if key in ("weight", "bias") else v for key, v in kwargs.items()}
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in _FORMATS else value

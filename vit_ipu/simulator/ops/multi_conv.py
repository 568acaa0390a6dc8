"""MultiConv: convolutions that an IPU runs in parallel (python/ops.py:1138-1303).

The results are the same as if the convolutions ran one by one. While a model is traced, the convolutions inside are
counted, and checked as in poptorch/source/PopartLateCanonicalization.cpp:29-180 and popart's op/convbase.cpp.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator import context
from vit_ipu.simulator.enums import MultiConvPlanType
from vit_ipu.simulator.errors import cpp_error, error

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class _Convolutions(TorchFunctionMode):
    """A mode that counts the convolutions called inside; only one such mode is entered at a time."""

    entered: Optional[_Convolutions] = None

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        self.count += func in _CONVOLUTIONS
        return func(*args, **(kwargs or {}))


class MultiConv:
    """A context manager: independent convolutions inside run as one operation. Options only affect speed and memory."""

    def __init__(self) -> None:
        self._available_memory_proportions: Optional[Sequence[float]] = None
        self._partials_types: Optional[Sequence[int]] = None
        self._plan_type: Optional[MultiConvPlanType] = None
        self._per_conv_reserved_tiles: Optional[int] = None
        self._cycle_back_off: Optional[float] = None
        self._enable_conv_ditherings: Optional[Sequence[bool]] = None
        self._stack = ExitStack()

    def availableMemoryProportions(self, value: Union[float, List[float]]) -> MultiConv:
        """Sets the proportion of memory for all convolutions, or one proportion for each."""
        name = "available memory proportion"
        self._available_memory_proportions = self._validatePerConvProperty(name, value, float)
        return self

    @staticmethod
    def _validatePerConvProperty(name: str, value: Any, expected_scalar_type: type) -> Optional[Sequence[Any]]:
        if value is None:
            return None
        if isinstance(value, expected_scalar_type):
            return (value,)
        if isinstance(value, (list, tuple)) and value and all(isinstance(x, expected_scalar_type) for x in value):
            return value
        raise AssertionError(f"Invalid {name}!")

    def partialsTypes(self, value: Union[torch.dtype, List[torch.dtype]]) -> MultiConv:
        """Sets the dtype of partial sums, torch.float or torch.half, for all convolutions or for each."""
        codes = {torch.float32: 0, torch.float16: 1}
        given = value if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(dtype, torch.dtype) and dtype in codes for dtype in given):
            raise ValueError("Invalid partials types. Expecting torch.float or torch.half")
        self._partials_types = [codes[dtype] for dtype in given]
        return self

    def enableConvDithering(self, value: Union[bool, List[bool]]) -> MultiConv:
        """Sets whether convolutions are dithered, for all convolutions or for each."""
        given = value if isinstance(value, (list, tuple)) else (value,)
        if value is not None and not all(isinstance(x, bool) for x in given):
            raise ValueError("value must be bool or list of bools")
        self._enable_conv_ditherings = None if value is None else given
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Sets how the convolutions are executed."""
        if value is not None and not isinstance(value, MultiConvPlanType):
            raise AssertionError("Invalid plan type!")
        self._plan_type = value
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Sets the number of tiles to reserve for each convolution."""
        assert isinstance(value, int)
        self._per_conv_reserved_tiles = value
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """Sets the proportion of cycles to back off, between 0 and 1."""
        assert isinstance(value, float)
        self._cycle_back_off = value
        return self

    def __enter__(self) -> None:
        if context.current.trace is None:
            return
        if _Convolutions.entered is not None:
            raise cpp_error("Nested poptorch.MultiConv is not supported.")
        _Convolutions.entered = self._stack.enter_context(_Convolutions())

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        convolutions, _Convolutions.entered = _Convolutions.entered, None
        self._stack.close()
        if convolutions is not None and type is None:
            self._check(convolutions.count)

    def _check(self, count: int) -> None:
        if count == 0:
            raise cpp_error("Unexpected end_multi_conv, is the IR malformed?")
        for proportion in self._available_memory_proportions or ():
            if not 0.0 < proportion <= 1.0:
                raise error("availableMemoryProportion must be in (0,1]", "popart_exception")
        per_convolution = {
            "available memory proportions": self._available_memory_proportions,
            "partials types": self._partials_types,
            "ditherings": self._enable_conv_ditherings,
        }
        for name, values in per_convolution.items():
            if values is not None and len(values) not in (1, count):
                raise error(
                    f"poptorch.MultiConv has {len(values)} {name} for {count} convolutions",
                    "popart_exception",
                )

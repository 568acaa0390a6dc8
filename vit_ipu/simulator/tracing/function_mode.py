"""Watches the functions of torch that a model calls while it is traced, above the dispatcher's operations."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

from torch.overrides import TorchFunctionMode

from vit_ipu.simulator.tracing.dispatch_mode import RecordingMode
from vit_ipu.simulator.tracing.functions import check_function, stand_in_for
from vit_ipu.simulator.tracing.library_ops import named_refusal


class FunctionMode(TorchFunctionMode):
    """Checks each call of a function of torch, tells the recording mode the function's name, and reports the call.

    `on_call` receives the function, its arguments (args, kwargs) and its result.
    """

    def __init__(self, recording_mode: RecordingMode, on_call: Callable[..., None]) -> None:
        super().__init__()
        self._recording_mode, self._on_call = recording_mode, on_call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        result = self.run(func, args, kwargs)
        self._recording_mode.function = ""
        self._on_call(func, (args, kwargs), result)
        return result

    def run(self, func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Returns the function's result. Raises Error if PopTorch refuses the function with these arguments."""
        check_function(func, args, kwargs)
        self._recording_mode.function = getattr(func, "__name__", "")
        with named_refusal(func):
            return stand_in_for(func, (args, kwargs))(*args, **kwargs)

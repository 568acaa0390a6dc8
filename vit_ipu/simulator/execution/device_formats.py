"""The formats and the arithmetic of the simulated IPUs, in which a program keeps its tensors and runs its calls.

With exact numerics, half precision is computed in float32: weights, optimizer state and activations that the model
keeps in float16 are float32 on the simulated IPU, and outputs are rounded to float16 when they leave the IPU. With an
IPU's numerics, all these tensors are float16 (arithmetic/half_mode.py).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator

import torch
from torch import Tensor, nn

from vit_ipu.simulator import context
from vit_ipu.simulator.arithmetic.floating_point_checks import FloatingPointChecks
from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic
from vit_ipu.simulator.arithmetic.mixed_formats import MixedFormats
from vit_ipu.simulator.arithmetic.mode import chosen
from vit_ipu.simulator.arithmetic.replaced_formats import ReplacedFormats
from vit_ipu.simulator.execution.batch_norm import FixedStatistics, updates_statistics
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.tracing.autograd_functions import without_hooks
from vit_ipu.simulator.tracing.compile_checks import checks_floating_point
from vit_ipu.simulator.tracing.device_names import NewTensors
from vit_ipu.simulator.tracing.trace import Trace


class DeviceFormats:
    """Moves tensors to the device in its formats, and makes torch compute as the device does."""

    def __init__(self, options: Options, trace: Trace, device: torch.device, modes: Dict[nn.Module, bool]) -> None:
        """`modes`: whether each module of the model is in training mode."""
        self._trace, self._device, self._modes = trace, device, modes
        numerics, checked = chosen(), checks_floating_point(options)
        self._checks = FloatingPointChecks() if checked else None
        self.half = HalfArithmetic.of(options, numerics, checked=checked) if numerics.is_ipu else None
        """An IPU's numerics; None for exact ones."""
        self._replaced = _replaced_formats(is_exact=self.half is None, keeps_float64=trace.keeps_float64)

    def to_device(self, tensor: Tensor, *, copy: bool = False) -> Tensor:
        """Returns the tensor on the device, in the format that it has there."""
        return tensor.detach().to(self._device, self._replaced.get(tensor.dtype, tensor.dtype), copy=copy)

    def input_to_device(self, tensor: Tensor) -> Tensor:
        """Returns an input on the device; 64-bit integers lose the bits that an IPU lacks."""
        return self.to_device(tensor.int().long() if tensor.dtype == torch.int64 else tensor)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Makes new tensors on the device, in the device's formats."""
        with ExitStack() as stack:
            stack.enter_context(context.unvalidated_distributions())
            if self._trace.is_training or self._trace.hooks:  # a program may add hooks after compilation
                stack.enter_context(without_hooks())
            if not self._trace.is_training and updates_statistics(self._modes):
                stack.enter_context(FixedStatistics())
            if self._device.type != "cpu":
                stack.enter_context(NewTensors(self._device))
            if self.half is not None:
                stack.enter_context(self.half)
            if self._checks is not None:
                stack.enter_context(self._checks)
            if self.half is not None or self._trace.keeps_float64:
                stack.enter_context(MixedFormats())
            if self._replaces_formats_of_calls():
                stack.enter_context(ReplacedFormats(self._replaced))
            yield

    def _replaces_formats_of_calls(self) -> bool:
        """Tells whether the model asks torch for a format that it does not get; if not, its calls need no mode."""
        return self._trace.asks_for_float64 or (self.half is None and self._trace.uses_half)


def _replaced_formats(*, is_exact: bool, keeps_float64: bool) -> Dict[torch.dtype, torch.dtype]:
    """Returns the formats that tensors on the device do not have, with the formats that they have instead."""
    replaced = {torch.float16} if is_exact else set()
    return dict.fromkeys(replaced if keeps_float64 else replaced | {torch.float64}, torch.float32)

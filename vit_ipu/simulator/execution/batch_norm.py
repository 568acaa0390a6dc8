"""Batch norm of an inferenceModel left in training mode: normalises by the batch and keeps the running statistics.

PopART updates running statistics when it builds the backward pass (willow/src/ir.cpp, constructBackwards), which
inference lacks.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def updates_statistics(modes: Dict[nn.Module, bool]) -> bool:
    """Tells whether there is a batch norm among the modules in training mode."""
    return any(isinstance(module, _BatchNorm) and is_training for module, is_training in modes.items())


class FixedStatistics(TorchFunctionMode):
    """Hides the running statistics from F.batch_norm in training mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        running_mean = running_var = None
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)

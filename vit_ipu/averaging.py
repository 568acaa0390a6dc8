"""Exponential moving average of the weights during training (as timm's ModelEmaV3 without its warmup)."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from vit_ipu.config import Config


class WeightAverage:
    """The average of a model's weights by name, in float32 or wider, on the device of the weights."""

    def __init__(self, weights: Dict[str, Tensor], decay: float) -> None:
        """Starts at `weights`; `decay` is the share of the old average in the new one at each `update`."""
        self.weights: Dict[str, Tensor] = {}
        self._decay = decay
        self.load(weights)

    @classmethod
    def of(cls, config: Config, weights: Dict[str, Tensor]) -> Optional[WeightAverage]:
        """Returns the average that a config asks for, which changes once a host step; None if it asks for none."""
        if config.optim.ema_decay is None:
            return None
        return cls(weights, config.optim.ema_decay**config.pipeline.device_iterations)

    @torch.no_grad()
    def load(self, weights: Dict[str, Tensor]) -> None:
        """Sets the average to a copy of `weights`."""
        self.weights = {name: _widened(tensor) for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: Dict[str, Tensor]) -> None:
        """Moves the average towards `weights`: average = decay x average + (1 - decay) x weights."""
        averages = list(self.weights.values())
        current: List[Tensor] = [weights[name].to(average.dtype) for name, average in self.weights.items()]
        torch._foreach_lerp_(averages, current, 1 - self._decay)


def _widened(tensor: Tensor) -> Tensor:
    """Returns a copy of a tensor, in float32 if its format is narrower."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)


def weights_state(weights: Dict[str, Tensor], average: Optional[WeightAverage]) -> Dict[str, Any]:
    """Returns the part of a backend's state that holds weights: `model`, and `unaveraged` if `model` is an average."""
    return {"model": weights} if average is None else {"model": average.weights, "unaveraged": weights}


def trained_weights(state: Dict[str, Any]) -> Dict[str, Tensor]:
    """Returns the weights of a backend's state that training continues with."""
    weights: Dict[str, Tensor] = state.get("unaveraged", state["model"])
    return weights


def share_of_start(config: Config, total_updates: int) -> float:
    """Returns the share of the initial weights in the average at the end of a run; 0 without an average."""
    decay = config.optim.ema_decay
    return 0.0 if decay is None else float(decay**total_updates)

"""Automatic loss scaling (popart automaticlossscaling.cpp, lossscaleupdatex.cpp:49-95).

PopART watches every float16 gradient of the backward pass; here the gradients of the weights are watched.
"""

from __future__ import annotations

from typing import Dict, Set

import torch
from torch import Tensor

from vit_ipu.simulator.errors import error

_LARGE = 0.125 * 65504  # binEdgeLocation x the largest float16 (sessionoptions.hpp:104)
_TOLERATED = 1e-7  # thresholdUpperCountProportion (sessionoptions.hpp:111)


class AutomaticLossScale:
    """The factor on the optimizer's loss scale: doubled after each update, or halved if gradients were too large."""

    def __init__(self, half_weights: Set[str]) -> None:
        """Takes the names of the trained float16 weights. Raises Error if there are none."""
        if not half_weights:
            message = "[AutomaticLossScale transform] No tracked gradient tensors of type fp16 were found."
            raise error(message, "popart_exception")
        self._watched = half_weights
        self.factor = torch.ones(())
        self._large, self._all = 0, 0

    def watch(self, gradients: Dict[str, Tensor]) -> None:
        """Counts the elements of a micro-batch's gradients, and those elements that are too large."""
        for name in self._watched & set(gradients):
            self._large += int((gradients[name].abs() > _LARGE).sum())
            self._all += gradients[name].numel()

    def update(self) -> None:
        """Adjusts the factor by the counts since the last update."""
        self.factor *= 0.5 if self._large > _TOLERATED * self._all else 2.0
        self._large, self._all = 0, 0

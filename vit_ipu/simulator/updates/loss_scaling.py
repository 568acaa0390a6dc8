"""Automatic loss scaling (popart automaticlossscaling.cpp, lossscaleupdatex.cpp:49-95).

PopART watches every float16 gradient of the backward pass; here the gradients of the weights are watched.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Set

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import MAX
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.logs import logger

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


class OverflowWatch:
    """Warns once if a gradient of a float16 weight does not fit into float16, which PopTorch does in silence.

    An IPU clips such a gradient (rounding.py), so that the weights learn something else than the loss asks for.
    """

    def __init__(self, half_weights: Set[str]) -> None:
        self._watched, self._has_warned = half_weights, False
        self._counts: Dict[str, Tensor] = {}
        self._sizes: Dict[str, int] = {}

    def watch(
        self,
        name: str,
        gradient: Tensor,
        micro_batches: int,
        *,
        is_first: bool = True,
        parts: Optional[Dict[str, Tensor]] = None,
    ) -> None:
        """Counts elements of a gradient that is a sum over micro-batches: above so many times the largest, one was.

        `is_first`: the first gradient of an update. `parts`: the gradients that a long one was joined from. The counts
        stay on the device, which so does not have to wait.
        """
        if self._has_warned or (name not in self._watched and gradient.dtype != torch.float16):
            return
        if is_first:
            self._counts.pop(name, None)
        if _are_below(gradient, micro_batches * MAX):
            return
        if parts is not None and gradient.device.type == "cpu":
            for part, of_part in parts.items():
                self.watch(part, of_part, micro_batches, is_first=False)
            return
        count = (gradient.abs() >= micro_batches * MAX).sum()
        self._sizes[name] = gradient.numel()
        if name not in self._counts:
            self._counts[name] = count
        else:
            self._counts[name].add_(count)

    def tensors(self) -> List[Tensor]:
        """Returns the counts on the device."""
        return list(self._counts.values())

    def report(self) -> None:
        """Warns if one of the gradients of an update was too large."""
        if self._has_warned or not self._counts:
            return
        counts = torch.stack(list(self._counts.values())).tolist()
        for name, count in zip(self._counts, counts):
            if count:
                self._has_warned = True
                logger.warning(
                    f"float16 overflow: {count:,} of {self._sizes[name]:,} elements of the gradient of {name} reach "
                    f"{MAX:g}, where an IPU clips them: lower the loss scaling"
                )
                return


def _are_below(gradient: Tensor, limit: float) -> bool:
    """Tells whether all sizes are below a limit; False off the CPU, where an answer would wait for the device."""
    if gradient.device.type != "cpu" or not gradient.numel():
        return False
    if gradient.dtype == torch.float16:  # a CPU compares integers faster; the order of the sizes is that of their bits
        sizes = gradient.contiguous().view(torch.int16).bitwise_and(0x7FFF)
        return int(sizes.max()) < int(torch.tensor(min(limit, MAX), dtype=torch.float16).view(torch.int16))
    low, high = torch.aminmax(gradient)
    return -limit < low.item() and high.item() < limit

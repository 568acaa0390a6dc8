"""Anchored tensors: values of the training graph that a call also collects, requested with Options.anchorTensor.

PopART's names: "Gradient___w" is the gradient of a micro-batch, multiplied by the loss scale; "UpdatedVar___w" is the
weight after an update; the optimizer's state has the names of its state dict, and a weight or buffer has its own name;
"finalLossScale" is the loss scale of an update, with automatic scaling included.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.execution.replicas import Replicas
from vit_ipu.simulator.options.output_modes import joined

GRADIENT, UPDATED, LOSS_SCALE = "Gradient___", "UpdatedVar___", "finalLossScale"


class Anchors:
    """The values of the anchored tensors during and after a call."""

    def __init__(self, anchored: Mapping[str, List[Any]], replicas: Replicas, state: Mapping[str, Tensor]) -> None:
        """`anchored`: (long name, unused, output mode, return period) by short name, as options keep them."""
        self._replicas = replicas
        self._modes: Dict[str, Tuple[str, OutputMode, int]] = {
            short: (long, OutputMode(mode), int(period)) for short, (long, _, mode, period) in anchored.items()
        }
        self._values: Dict[str, List[Tensor]] = {}
        self.results: Dict[str, Tensor] = {}
        names = dict.fromkeys(long for long, _, _ in self._modes.values())
        self._sources = {long: self._source(long, state) for long in names}

    def _source(self, long: str, state: Mapping[str, Tensor]) -> List[Tensor]:
        """Returns each replica's tensor to read after an update; none for a value recorded before the update."""
        if long == LOSS_SCALE:
            return []
        weights = self._replicas.tensors_of(long[len(GRADIENT) :]) if long.startswith(GRADIENT) else []
        if weights and weights[0].requires_grad:
            for weight in set(weights):  # replicas that share a weight share its tensor
                weight.register_hook(lambda gradient: self._note(long, gradient))  # type: ignore[no-untyped-call]
            return []
        found = self._replicas.tensors_of(long[len(UPDATED) :] if long.startswith(UPDATED) else long)
        if not found and long in state:
            found = self._replicas.state_of(long.partition("___")[2], state[long])
        if not found:
            raise cpp_error(f"Anchored tensor {long} is not in the graph")
        return found

    def _note(self, long: str, gradient: Tensor) -> None:
        self._values[long].append(gradient.detach().clone())

    def start_call(self) -> None:
        """Forgets the values of the previous call."""
        self._values = {long: [] for long in self._sources}

    def before_update(self, loss_scale: float) -> None:
        """Records the loss scale of the gradients."""
        if LOSS_SCALE in self._values:
            self._values[LOSS_SCALE] += [torch.tensor(loss_scale)] * self._replicas.count

    def after_update(self) -> None:
        """Records the updated tensors of each replica."""
        for long, tensors in self._sources.items():
            self._values[long] += [tensor.detach().clone() for tensor in tensors]

    def end_call(self) -> None:
        """Selects the values by each anchor's output mode."""
        for short, (long, mode, period) in self._modes.items():
            self.results[short] = joined(self._values[long], self._replicas.count, mode, period).cpu()

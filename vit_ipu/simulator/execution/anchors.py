"""Anchored tensors: values of the training graph that a call also collects, requested with Options.anchorTensor.

PopART's names: "Gradient___w" is the gradient of a micro-batch, multiplied by the loss scale; "UpdatedVar___w" is the
weight after an update; the optimizer's state has the names of its state dict, and a weight or buffer has its own name;
"finalLossScale" is the loss scale of an update, with automatic scaling included.

An anchor has the output mode of the model, whatever mode `anchorTensor` was given: PopTorch 3.4 logs the anchor's own
mode and then adds the output without it (poptorch/source/LowerToPopart.cpp:526-537).
"""

from __future__ import annotations

from typing import Dict, List, Mapping

import torch
from torch import Tensor

from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.execution.replicas import Replicas
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.options.output_modes import joined

GRADIENT, UPDATED, LOSS_SCALE = "Gradient___", "UpdatedVar___", "finalLossScale"


class Anchors:
    """The values of the anchored tensors during and after a call."""

    def __init__(self, options: Options, replicas: Replicas, state: Mapping[str, Tensor]) -> None:
        self._replicas = replicas
        self._long_names = {short: str(anchor[0]) for short, anchor in options.anchored_tensors.items()}
        self._mode, self._period = OutputMode(options.output_mode), int(options.output_return_period)
        self._values: Dict[str, List[Tensor]] = {}
        self.results: Dict[str, Tensor] = {}
        self._sources = {long: self._source(long, state) for long in dict.fromkeys(self._long_names.values())}

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
        """Selects the values by the output mode."""
        for short, long in self._long_names.items():
            self.results[short] = joined(self._values[long], self._replicas.count, self._mode, self._period).cpu()

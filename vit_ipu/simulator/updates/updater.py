"""The weight update on the simulated IPU: PopART's formulas, in PopART's order.

Sources: popart/willow adamdecompose.cpp, adaptivedecompose.cpp, sgd{0,1,2}decompose.cpp, optimizerdecompose.cpp,
compoundscalarhelper.cpp and clipweightgradientsbynorm.cpp. A gradient arrives reduced over accumulation and
replicas, but multiplied by the loss scale and, unless the mean is a running one, as a sum: the optimizer's scalars
remove the loss scale and, if the mean is wanted, divide the sum.

A float16 tensor is widened to float32 for each formula and rounded once at the end of the formula.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import Rounding
from vit_ipu.simulator.updates.attributes import Attributes
from vit_ipu.simulator.updates.gradients import Reduction
from vit_ipu.simulator.updates.joined import joinable, joined, place_side_by_side
from vit_ipu.simulator.updates.loss_scaling import AutomaticLossScale
from vit_ipu.simulator.updates.rules import RULES, Variable
from vit_ipu.simulator.updates.scalars import Scalars, scalars_of

_SHORT = 1 << 16
"""Elements of a weight whose update takes a CPU less time than starting its operations."""


class Updater:
    """The optimizer's state and scalars on the IPU, and the rule that uses them."""

    def __init__(
        self,
        attributes: Attributes,
        weights: Dict[str, Tensor],
        names: Sequence[Sequence[str]],
        reduction: Reduction,
        rounding: Optional[Rounding] = None,
        automatic_loss_scale: Optional[AutomaticLossScale] = None,
        replica_groups: Optional[Mapping[str, int]] = None,
    ) -> None:
        """Creates the state. `names`: each group's parameter names; without `rounding`, all is computed exactly.

        `replica_groups`: the numbers of groups of replicas whose values the grouped parameters hold.
        """
        self._attributes, self._names, self._reduction = attributes, names, reduction
        self.automatic_loss_scale = automatic_loss_scale
        self._rule = RULES[attributes.kind]
        self._loaded: Dict[str, Tensor] = {}
        self._reported: Dict[str, Tensor] = {}
        scalars = self._scalars(attributes, weights)
        self._variables: Dict[str, Variable] = {}
        for group_names in names:
            for name in group_names:
                groups = (replica_groups or {}).get(name, 1)
                variable = Variable(weights[name], scalars[name], {}, attributes, rounding, groups)
                variable.state.update(self._rule.new_state(variable))
                self._variables[name] = variable
        self._place_side_by_side()

    def _place_side_by_side(self) -> None:
        """Lets the weights that are updated as one, and their state, lie in one piece of the host's memory."""
        for group in self._names:
            together: Dict[Any, List[Tensor]] = {}
            for variable in (self._variables[name] for name in group):
                if not variable.weight.is_cuda and self._joins(variable):
                    kinds = {"": variable.weight, **variable.state}
                    for kind, tensor in kinds.items():
                        if tensor.dim() > 0:
                            together.setdefault((kind, variable.weight.dtype, tensor.dtype), []).append(tensor)
            for tensors in together.values():
                place_side_by_side(tensors)

    def _scalars(self, attributes: Attributes, weights: Dict[str, Tensor]) -> Dict[str, Scalars]:
        return {
            name: scalars_of(attributes, number, self._reduction, weights[name].dtype)
            for number, group_names in enumerate(self._names)
            for name in group_names
        }

    @property
    def attributes(self) -> Attributes:
        """The attributes at the time of setOptimizer; setting different values also replaces the scalars."""
        return self._attributes

    @attributes.setter
    def attributes(self, attributes: Attributes) -> None:
        changed = not attributes.has_same_values(self._attributes)
        self._attributes = attributes
        if changed:
            self._loaded = {}
            weights = {name: variable.weight for name, variable in self._variables.items()}
            for name, scalars in self._scalars(attributes, weights).items():
                self._variables[name] = self._variables[name]._replace(scalars=scalars, attributes=attributes)

    @property
    def loss_scale(self) -> float:
        """The factor on the loss: the optimizer's loss scaling, times the automatic factor."""
        return self._attributes.loss_scaling * self._factor

    @property
    def _factor(self) -> float:
        return 1.0 if self.automatic_loss_scale is None else float(self.automatic_loss_scale.factor)

    # --------------------------------------------------------------------------------------- state

    @property
    def state(self) -> Dict[str, Tensor]:
        """The optimizer state by PopART's tensor names."""
        state = {prefix + name: tensor for name, v in self._variables.items() for prefix, tensor in v.state.items()}
        if self.automatic_loss_scale is not None:
            state["lossScaleUpdateFactor"] = self.automatic_loss_scale.factor
        return state

    @property
    def parameters(self) -> Dict[str, Tensor]:
        """The variable scalars by PopART's tensor names."""
        parameters = {
            f"{scalar}___specific___{name}": torch.tensor(variable.scalars.values[scalar])
            for name, variable in self._variables.items()
            for scalar in sorted(variable.scalars.variable)
        }
        if not self._attributes.is_constant("loss_scaling", self._attributes.loss_scaling):
            parameters["lossScaling_FLOAT"] = torch.tensor(self._attributes.loss_scaling)
        parameters.update(self._loaded)
        self._reported = parameters
        return dict(parameters)

    def load_parameters(self, parameters: Dict[str, Tensor]) -> None:
        """Stores scalars that `parameters` returns from now on, until the optimizer is set to other values.

        The update does not use the stored scalars: PopTorch writes them to the host's copy only, and PopART sends this
        copy to the IPU when an optimizer is set (python/poptorch.cpp:1019-1031, popart session.cpp
        updateOptimizerFromHost).
        """
        reported = self._reported  # values that an executor only writes back when it attaches again are not changes
        known = [name for name in self.parameters if name in parameters]
        changed = [name for name in known if name not in reported or not torch.equal(parameters[name], reported[name])]
        self._loaded.update({name: parameters[name] for name in changed})

    # -------------------------------------------------------------------------------------- update

    @torch.no_grad()
    def step(self, gradients: Dict[str, Tensor]) -> None:
        """Updates the weights in place; `gradients` are overwritten."""
        updated = {name: self._variables[name] for name in gradients if name in self._variables}
        short = {name: variable for name, variable in updated.items() if self._joins(variable)}
        for names in joinable(short):
            with joined([short[name] for name in names]) as variable:
                self._update([variable], [torch.cat([gradients[name].flatten() for name in names])])
        rest = [name for name in updated if name not in short]
        self._update([updated[name] for name in rest], [gradients[name] for name in rest])
        if self.automatic_loss_scale is not None:
            self.automatic_loss_scale.update()

    def _joins(self, variable: Variable) -> bool:
        """Tells whether a weight is updated as a part of a long one: if starting operations takes longer than they do.

        The rule must look at single elements.
        """
        is_elementwise = self._rule.is_elementwise and math.isinf(self._attributes.max_grad_norm)
        is_short = variable.weight.is_cuda or variable.weight.numel() <= _SHORT
        return is_elementwise and is_short and variable.groups == 1

    def _update(self, variables: List[Variable], gradients: List[Tensor]) -> None:
        entering = [self._rule.enter(v, gradient, self._factor) for v, gradient in zip(variables, gradients)]
        entering = _clipped(entering, self._attributes.max_grad_norm)
        for variable, entered in zip(variables, entering):
            self._rule.update(variable, entered)


def _clipped(tensors: List[Tensor], max_norm: float) -> List[Tensor]:
    """Returns the tensors times c / max(c, norm of all tensors together) (clipweightgradientsbynorm.cpp:337-363)."""
    if math.isinf(max_norm) or not tensors:
        return tensors
    norm = torch.stack([tensor.norm() for tensor in tensors]).norm()
    factor = max_norm / norm.clamp(min=max_norm)
    return [tensor * factor for tensor in tensors]

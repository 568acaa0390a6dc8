"""The weight update on the simulated IPU: PopART's formulas, in the order in which it applies them.

Sources: popart/willow adamdecompose.cpp, sgd2decompose.cpp, adamupdaterx.cpp, adamvarupdatex.cpp and
clipweightgradientsbynorm.cpp. A gradient has already been reduced over accumulation and replicas, and the loss
scale removed.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.optim import Attributes

Group = Dict[str, Any]


class Variable(NamedTuple):
    """A weight, the number of its optimizer group, and its optimizer state by PopART's prefix."""

    weight: Tensor
    group: int
    state: Dict[str, Tensor]


class Updater:
    """The optimizer state on the IPU and the rule that uses it."""

    def __init__(self, attributes: Attributes, weights: Dict[str, Tensor], names: Sequence[Sequence[str]]) -> None:
        """`names`: the parameters of each of the optimizer's groups."""
        self.attributes = attributes
        self._rule = _RULES[attributes.kind]
        self._variables = {
            name: Variable(weights[name], index, self._rule.new_state(weights[name], attributes.groups[index]))
            for index, group_names in enumerate(names)
            for name in group_names
        }

    @property
    def state(self) -> Dict[str, Tensor]:
        """The optimizer state by PopART's tensor names."""
        variables = self._variables.items()
        return {prefix + name: tensor for name, v in variables for prefix, tensor in v.state.items()}

    @property
    def parameters(self) -> Dict[str, Tensor]:
        """The learning rate and weight decay of each group, as tensors by name."""
        return {
            "{}___group{}".format(name, index): torch.tensor(float(group[name]))
            for index, group in enumerate(self.attributes.groups)
            for name in ("lr", "weight_decay")
        }

    @torch.no_grad()
    def step(self, gradients: Dict[str, Tensor]) -> None:
        """Updates the weights in place; `gradients` are overwritten."""
        groups = self.attributes.groups
        updated = {name: self._variables[name] for name in gradients if name in self._variables}
        entering = {
            name: self._rule.enter(variable, gradients[name], groups[variable.group])
            for name, variable in updated.items()
        }
        _clip(list(entering.values()), self.attributes.max_grad_norm)
        for name, variable in updated.items():
            group = dict(groups[variable.group], bias_correction=self.attributes.bias_correction)
            update = self._rule.update(variable, entering[name], gradients[name], group)
            variable.weight.add_(update, alpha=-group["lr"])


def _clip(tensors: List[Tensor], max_norm: float) -> None:
    """Scales all by c / max(c, norm), the norm being that of all together (clipweightgradientsbynorm.cpp:337-363)."""
    if math.isinf(max_norm) or not tensors:
        return
    norm = torch.stack([tensor.norm() for tensor in tensors]).norm()
    factor = max_norm / norm.clamp(min=max_norm)
    for tensor in tensors:
        tensor.mul_(factor)


class _SGD:
    """`enter` gives what clipping acts upon, here the velocity; `update` what the learning rate multiplies."""

    @staticmethod
    def new_state(weight: Tensor, group: Group) -> Dict[str, Tensor]:
        return {"Accl1___": torch.zeros_like(weight, requires_grad=False)} if group["momentum"] else {}

    @staticmethod
    def enter(variable: Variable, gradient: Tensor, group: Group) -> Tensor:
        if group["weight_decay"]:
            gradient.add_(variable.weight, alpha=group["weight_decay"])
        if not group["momentum"]:
            return gradient
        velocity = variable.state["Accl1___"]
        return velocity.mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])

    @staticmethod
    def update(variable: Variable, entered: Tensor, gradient: Tensor, group: Group) -> Tensor:
        return gradient.add_(entered, alpha=group["momentum"]) if group["nesterov"] else entered


class _AdamW:
    """Clipping acts upon the gradient; weight decay is decoupled."""

    @staticmethod
    def new_state(weight: Tensor, group: Group) -> Dict[str, Tensor]:
        moments = {prefix: torch.zeros_like(weight, requires_grad=False) for prefix in ("Accl1___", "Accl2___")}
        return dict(moments, Step___=torch.zeros(()))

    @staticmethod
    def enter(variable: Variable, gradient: Tensor, group: Group) -> Tensor:
        return gradient

    @classmethod
    def update(cls, variable: Variable, entered: Tensor, gradient: Tensor, group: Group) -> Tensor:
        return _adam_update(variable.state, entered, group).add_(variable.weight, alpha=group["weight_decay"])


class _Adam(_AdamW):
    """Clipping acts upon the gradient after the L2 term was added."""

    @staticmethod
    def enter(variable: Variable, gradient: Tensor, group: Group) -> Tensor:
        return gradient.add_(variable.weight, alpha=group["weight_decay"])

    @classmethod
    def update(cls, variable: Variable, entered: Tensor, gradient: Tensor, group: Group) -> Tensor:
        return _adam_update(variable.state, entered, group)


class _LAMB(_AdamW):
    """AdamW's update times the trust ratio: the weight norm, clamped, over the update norm, or 1 if either is 0."""

    @classmethod
    def update(cls, variable: Variable, entered: Tensor, gradient: Tensor, group: Group) -> Tensor:
        update = super().update(variable, entered, gradient, group)
        weight_norm, update_norm = variable.weight.norm().clamp(max=group["max_weight_norm"]), update.norm()
        defined = (weight_norm > 0) & (update_norm > 0)
        return update.mul_(torch.where(defined, weight_norm / update_norm, torch.ones_like(weight_norm)))


def _adam_update(state: Dict[str, Tensor], gradient: Tensor, group: Group) -> Tensor:
    """m / (sqrt(v) + eps), both moments corrected for their start at zero."""
    first, second, steps = state["Accl1___"], state["Accl2___"], state["Step___"]
    beta1, beta2 = group["betas"]
    steps.add_(1)
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step = steps.item() if group["bias_correction"] else math.inf
    root = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    return (first / (1 - beta1**step)).div_(root)


_RULES: Dict[str, Any] = {"sgd": _SGD, "adam": _Adam, "adamw": _AdamW, "lamb": _LAMB}

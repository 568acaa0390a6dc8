"""The scalars that pass attributes to PopART's optimizers, per weight (popart compoundscalarhelper.cpp).

Legend, as in popart sgd.hpp: lr, mm momentum, dm dampening, wd weight decay, ls loss scaling, vs velocity scaling,
rf the number of replicas whose velocities are summed, or 1 if their gradients are summed. `divisor` turns the sum of
the gradients into the mean, where PopART has factors for accumulation (af) and for replication.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Set, Tuple

import torch

from vit_ipu.simulator.updates.attributes import Attributes
from vit_ipu.simulator.updates.gradients import Reduction

Table = Dict[str, Tuple[float, Tuple[str, ...]]]
"""Maps a scalar's name to its value and its source attributes; a scalar is variable if one of these attributes is."""


class Scalars(NamedTuple):
    """Values by PopART's names, and the names of the variable scalars: tensors on the IPU, not compiled in."""

    values: Dict[str, float]
    variable: Set[str]
    replicas: int  # number of replicas whose velocities are summed: R with gradient accumulation, else 1


def scalars_of(attributes: Attributes, group: int, reduction: Reduction, dtype: torch.dtype) -> Scalars:
    """Returns the scalars of a weight of `dtype` in the given group."""
    values = attributes.groups[group]
    table = _TABLES[attributes.kind](attributes, values, reduction)
    variable = {name for name, (_, sources) in table.items() if any(_varies(attributes, values, s) for s in sources)}
    numbers = {name: float(value) for name, (value, _) in table.items()}
    if dtype == torch.float16:
        for name in variable & _IN_THE_WEIGHTS_FORMAT:  # sgd.cpp:596-606
            numbers[name] = float(torch.tensor(numbers[name], dtype=torch.float16))
    return Scalars(numbers, variable, reduction.replicas if reduction.accumulation > 1 else 1)


_IN_THE_WEIGHTS_FORMAT = {"weightDecayScaleFactor0", "scaledMomentum1", "scaledMomentum2", "sgdMomentum"}


def _varies(attributes: Attributes, group: Dict[str, Any], name: str) -> bool:
    value = attributes.loss_scaling if name == "loss_scaling" else group.get(name)
    return not attributes.is_constant(name, value)


def has_momentum(attributes: Attributes, group: Dict[str, Any]) -> bool:
    """Tells whether there is a velocity: momentum is not zero, or may change (sgd.cpp:152-155)."""
    return bool(group["momentum"]) or _varies(attributes, group, "momentum")


def _sgd(attributes: Attributes, group: Dict[str, Any], reduction: Reduction) -> Table:
    lr, dm, wd, ls = group["lr"], group["dampening"], group["weight_decay"], attributes.loss_scaling
    divisor = 1 if reduction.is_running else reduction.mean_divisor
    if not has_momentum(attributes, group):
        return {
            "scaledLearningRate0": (lr * (1 - dm) / (ls * divisor), ("lr", "dampening", "loss_scaling")),
            "weightDecayScaleFactor0": (1 - lr * (1 - dm) * wd, ("lr", "dampening", "weight_decay")),
        }
    # the velocity of the separate variant is scaled like the loss (CompilerImpl.cpp:823-860)
    return _with_momentum(group, "2", vs=ls, vs_is="loss_scaling", ls=ls, divisor=divisor, rf=1)


def _sgd_combined(attributes: Attributes, group: Dict[str, Any], reduction: Reduction) -> Table:
    if not has_momentum(attributes, group):
        return _sgd(attributes, group, reduction)
    # the velocities of the replicas are summed, not the gradients (sgd.hpp:325-385)
    rf = reduction.replicas if reduction.accumulation > 1 else 1
    vs, ls, divisor = group["velocity_scaling"], attributes.loss_scaling, reduction.mean_divisor
    return _with_momentum(group, "1", vs=vs, vs_is="velocity_scaling", ls=ls, divisor=divisor, rf=rf)


def _with_momentum(
    group: Dict[str, Any], suffix: str, *, vs: float, vs_is: str, ls: float, divisor: int, rf: int
) -> Table:
    """Returns the scalars of SGD with momentum.

    PopART leaves `divisor` out of Nesterov's gradient. torch does not, and these scalars follow torch.
    """
    dm, wd, mm = group["dampening"], group["weight_decay"], group["momentum"]
    table: Table = {
        "scaledWeightDecay1": ((1 - dm) * wd * vs, ("dampening", "weight_decay", vs_is)),
        "scaledLearningRate" + suffix: (group["lr"] / (vs * rf), ("lr", vs_is)),
        "scaledMomentum" + suffix: (mm / rf, ("momentum",)),
        "dampeningScaleFactor" + suffix: (
            (1 - dm) * vs * rf / (ls * divisor),
            ("dampening", vs_is, "loss_scaling"),
        ),
    }
    if group["nesterov"] and mm > 0:
        dampening = "nesterovDampeningScaleFactor" + suffix
        table[dampening] = (1 / ((1 - dm) * vs * rf), ("dampening", vs_is, "loss_scaling"))
        table["nesterovGradScaleFactor" + suffix] = (vs * rf, (vs_is,))
        table["sgdMomentum"] = (mm, ("momentum",))
        table["sgdWeightDecay"] = (wd, ("weight_decay",))
    return table


def _adam(attributes: Attributes, group: Dict[str, Any], reduction: Reduction) -> Table:
    table = _adaptive(attributes, group, reduction, "adam")
    table["adamBeta1"], table["adamBeta2"] = ((beta, ("betas",)) for beta in group["betas"])
    if "max_weight_norm" in group:
        table["maxWeightNorm"] = (group["max_weight_norm"], ("max_weight_norm",))
    return table


def _rmsprop(attributes: Attributes, group: Dict[str, Any], reduction: Reduction) -> Table:
    table = _adaptive(attributes, group, reduction, "adaptive")
    table["adaptiveAlpha"] = (group["alpha"], ("alpha",))
    table["adaptiveMomentum"] = (group["momentum"], ("momentum",))
    return table


def _adaptive(attributes: Attributes, group: Dict[str, Any], reduction: Reduction, prefix: str) -> Table:
    ls, divisor = attributes.loss_scaling, 1 if reduction.is_running else reduction.mean_divisor
    return {
        "learningRate": (group["lr"], ("lr",)),
        "weightDecay": (group["weight_decay"], ("weight_decay",)),
        "lossScaling": (ls, ("loss_scaling",)),
        prefix + "Eps": (group["eps"], ("eps",)),
        prefix + "GradientScaling": (1 / (ls * divisor), ("loss_scaling",)),
    }


_TABLES: Dict[str, Any] = {
    "sgd": _sgd,
    "sgd_combined": _sgd_combined,
    "adam": _adam,
    "adamw": _adam,
    "lamb": _adam,
    "lamb_no_bias": _adam,
    "rmsprop": _rmsprop,
    "rmsprop_centered": _rmsprop,
}

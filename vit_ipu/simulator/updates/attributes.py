"""An optimizer as the IPU receives it: its kind, and its attribute values at the time of setOptimizer.

Rules and messages are those of PopTorch's python/_optimizer_attributes.py.
"""

from __future__ import annotations

import numbers
from typing import Any, Callable, Dict, List, Optional

import torch

from vit_ipu.simulator.errors import error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.optim import LAMB, SGD, Adam, AdamW, Optimizer, RMSprop
from vit_ipu.simulator.options.options import Options

_GROUP_ATTRIBUTES = {
    "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    "sgd_combined": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"),
    "adam": ("lr", "betas", "eps", "weight_decay"),
    "adamw": ("lr", "betas", "eps", "weight_decay"),
    "rmsprop": ("lr", "momentum", "weight_decay", "alpha", "eps"),
    "rmsprop_centered": ("lr", "momentum", "weight_decay", "alpha", "eps"),
    "lamb": ("lr", "weight_decay", "betas", "eps", "max_weight_norm"),
    "lamb_no_bias": ("lr", "weight_decay", "betas", "eps", "max_weight_norm"),
}
_TYPES = ("accum_type", "velocity_accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")


class Attributes:
    """The kind and the attribute values of an optimizer; `groups` holds the values of each parameter group."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, options: Options, tracker: Optional[AttributeTracker] = None
    ) -> None:
        """Reads the optimizer; `tracker` reports attributes that PopTorch ignores.

        Raises AssertionError or ValueError if PopTorch does.
        """
        self.kind = _kind_of(optimizer)
        self.groups = [dict(group, params=tuple(group["params"])) for group in optimizer.param_groups]
        for group in self.groups:
            _check_group(self.kind, group)
        self.automatic_loss_scaling = bool(options._Popart.options.get("automaticLossScalingSettings.enabled", False))
        self._variable = getattr(optimizer, "variable_attrs", None)
        self.loss_scaling = _loss_scaling(optimizer)
        self.max_grad_norm = float(getattr(optimizer, "max_grad_norm", float("inf")))
        self.use_tf_variant = bool(getattr(optimizer, "use_tf_variant", False))
        types = {name: _state_type(optimizer, name) for name in _TYPES}
        self.accum_type = types["accum_type"]
        first = "velocity_accum_type" if self.kind == "sgd" else "first_order_momentum_accum_type"
        self.moment_types = types[first], types["second_order_momentum_accum_type"]
        if tracker is not None:
            tracker.check(self.kind, optimizer, relaxed=bool(options._relax_optimizer_checks))

    @property
    def needs_running_mean(self) -> bool:
        """Tells whether gradients are accumulated in float16, for which PopTorch uses the running mean."""
        return self.accum_type == torch.float16 and self.kind != "sgd_combined"

    def check_replaces(self, compiled: Attributes) -> None:
        """Raises Error if these attributes need a different program than the one compiled for `compiled`."""
        if self.kind != compiled.kind or len(self.groups) != len(compiled.groups):
            raise error(
                f"The new optimizer is {self.kind} with {len(self.groups)} groups but the executable was compiled for "
                f"{compiled.kind} with {len(compiled.groups)}"
            )
        if self.max_grad_norm != compiled.max_grad_norm:
            raise error("Clip norm settings at index 0 do not match.")
        self._check_value(compiled, "loss_scaling", compiled.loss_scaling, self.loss_scaling)
        for old, new in zip(compiled.groups, self.groups):
            for name in _GROUP_ATTRIBUTES[self.kind]:
                self._check_value(compiled, name, old.get(name), new.get(name))

    def _check_value(self, compiled: Attributes, name: str, old: Any, new: Any) -> None:
        if compiled.is_constant(name, old) and new != old:
            raise error(f"Attribute {name} is constant in the compiled optimizer: it cannot change from {old} to {new}")

    def is_constant(self, name: str, value: Any) -> bool:
        """Tells whether an attribute with this value is compiled in (python/_optimizer_attributes.py:158-187).

        For PopTorch's optimizers, this holds for attributes that were not passed to the constructor; for torch's
        optimizers, for attributes that have their default value.
        """
        if name == "loss_scaling" and self.automatic_loss_scaling:
            return False
        if self._variable is not None:
            return bool(self._variable.isConstant(name))
        constant = 1e-2 if name == "weight_decay" and self.kind == "adamw" else _CONSTANT_VALUES[name]
        return constant is _ALWAYS or value == constant

    def has_same_values(self, other: Attributes) -> bool:
        """Tells whether `other` gives the IPU the same values, so that the IPU keeps its present ones."""
        names = _GROUP_ATTRIBUTES[self.kind]
        mine, others = ([[group.get(name) for name in names] for group in a.groups] for a in (self, other))
        return self.loss_scaling == other.loss_scaling and mine == others


_ALWAYS, _NEVER = object(), object()
_CONSTANT_VALUES: Dict[str, Any] = {
    "lr": _NEVER,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "dampening": 0.0,
    "velocity_scaling": 1.0,
    "eps": 1e-8,
    "betas": _ALWAYS,
    "alpha": _ALWAYS,
    "nesterov": _ALWAYS,
    "max_weight_norm": 65500.0,
    "loss_scaling": 1.0,
}


class AttributeTracker:
    """Reports, once each, attributes that the first optimizer lacked: PopTorch ignores these attributes."""

    def __init__(self) -> None:
        self._known: Optional[Dict[str, List[str]]] = None
        self._reported: List[str] = []

    def check(self, kind: str, optimizer: torch.optim.Optimizer, *, relaxed: bool) -> None:
        """Records the first optimizer's attributes; reports later additions, in the debug log if `relaxed`."""
        groups = {"default group variable": list(optimizer.defaults)}
        own = [name for name in vars(optimizer) if name not in _NOT_ATTRIBUTES]
        groups["optimizer attribute"] = own
        for number, group in enumerate(optimizer.param_groups):
            groups[f"group {number} attribute"] = [name for name in group if name != "params"]
        if self._known is None:
            of_groups = sorted({name for what, names in groups.items() if "group" in what for name in names})
            self._known = {what: own if what == "optimizer attribute" else of_groups for what in groups}
            return
        for what, names in groups.items():
            extra = [name for name in names if name not in self._known.get(what, names)]
            if extra:
                self._report_once(f"Ignoring unexpected {what} in {kind.upper()} optimizer: {extra}", relaxed)

    def _report_once(self, message: str, relaxed: bool) -> None:
        if message not in self._reported:
            (logger.debug if relaxed else logger.warning)(message)
            self._reported.append(message)


# Members that torch keeps in an optimizer, and the method that an executor replaces.
_NOT_ATTRIBUTES = ("defaults", "state", "param_groups", "variable_attrs", "state_dict")


def _kind_of(optimizer: torch.optim.Optimizer) -> str:
    """Returns the kind of an optimizer; AdamW is tried before Adam, from which newer versions of torch derive AdamW."""
    if type(optimizer) not in _KNOWN:
        logger.warning(
            "Optimizer `%s` subclassed from classes in poptorch.optim or torch.optim are unlikely to behave as "
            "intended. Poptorch does not run Python optimizer code directly; but instead uses IPU native optimisers "
            "implemented in PopART.",
            type(optimizer).__name__,
        )
    for kind, of_type in _KINDS.items():
        if isinstance(optimizer, of_type):
            return _VARIANTS[kind](optimizer) if kind in _VARIANTS else kind
    raise AssertionError("Unsupported optimizer type. Types supported: SGD, Adam, AdamW, RMSprop, LAMB")


_KINDS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "lamb": LAMB,
}
_KNOWN = (*_KINDS.values(), SGD, Adam, AdamW, RMSprop)


def _rmsprop(optimizer: torch.optim.Optimizer) -> str:
    first = optimizer.param_groups[0]["centered"]
    for number, group in enumerate(optimizer.param_groups):
        assert group["centered"] == first, (
            f"All parameter groups must have the same value for the 'centered' attribute (Group 0: {first} / "
            f"Group {number}: {group['centered']})"
        )
    return "rmsprop_centered" if first else "rmsprop"


_VARIANTS: Dict[str, Callable[[Any], str]] = {
    "sgd": lambda optimizer: "sgd_combined" if getattr(optimizer, "use_combined_accum", False) else "sgd",
    "rmsprop": _rmsprop,
    "lamb": lambda optimizer: "lamb" if getattr(optimizer, "bias_correction", True) else "lamb_no_bias",
}


def _check_group(kind: str, group: Dict[str, Any]) -> None:
    if kind in ("adam", "adamw") and group["amsgrad"]:
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
    for name in _GROUP_ATTRIBUTES[kind]:
        value = group.get(name)
        assert value is not None, f"Mandatory attribute {name} not found in optimizer group"
        if name == "betas":
            is_pair = isinstance(value, tuple) and len(value) == 2
            assert is_pair, f"Expected a pair for betas but got {value} instead"
        else:
            _check_number(name, value)
    if group.get("maximize"):
        logger.warning("The attribute maximize has no effect: PopTorch always minimises the loss")


def _check_number(name: str, value: Any) -> None:
    assert isinstance(value, numbers.Number), f"Expected a number for {name} but got {value} instead"


def _loss_scaling(optimizer: torch.optim.Optimizer) -> float:
    value = getattr(optimizer, "loss_scaling", 1.0)
    _check_number("loss_scaling", value)
    if value == 0:
        raise error("Loss scaling cannot be 0", "popart_exception")
    return float(value)


def _state_type(optimizer: torch.optim.Optimizer, name: str) -> torch.dtype:
    dtype = getattr(optimizer, name, torch.float32) if isinstance(optimizer, Optimizer) else torch.float32
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"{name} must be set to either torch.float16 or torch.float32 not {dtype}")
    return dtype

"""PopTorch's optimizers (python/optim.py): torch's, with loss scaling and the formats of their state.

They only hold attributes; the arithmetic runs on the simulated IPU (updates.py). An attribute that is passed to
the constructor is variable and may change between calls, one that is not is compiled in.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch

from vit_ipu.simulator.errors import error

_STATE_TYPES = (torch.float16, torch.float32)


class VariableAttributes:
    """Which attributes of an optimizer may change after compilation."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable, self._allowed = list(variable_attributes), list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:
        self._check(attr)
        self._variable = [name for name in self._variable if name != attr]

    def markAsVariable(self, attr: str) -> None:
        self._check(attr)
        self._variable.append(attr)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed, "Unknown attribute {}, allowed values: {}".format(attr, self._allowed)


class Optimizer:
    """The part of an optimizer's state that lives on the IPU, and whether the host's copy of it is current."""

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    def state_dict(self) -> Dict[str, Any]:
        return self.get_state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        torch_state = torch.optim.Optimizer.state_dict(self)  # type: ignore[arg-type]
        return dict(self._state_dict, **torch_state)

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if not ("ipu_state" in state and "ipu_param" in state):
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        self._state_dict = dict(state)
        self.ipu_state_is_dirty = True
        self.host_state_is_dirty = False

    def has_state(self) -> bool:
        return self._state_dict.get("ipu_state") is not None and self._state_dict.get("ipu_param") is not None

    def _own(self, given: Dict[str, Any], defaults: Dict[str, Any], variables: Iterable[str]) -> None:
        """Sets the attributes that torch's optimizer does not have; those of type dtype are checked."""
        for name, default in defaults.items():
            value = default if given.get(name) is None else given[name]
            if isinstance(default, torch.dtype):
                assert value in _STATE_TYPES, "Accumulation types must be either torch.float32 or torch.float16"
            setattr(self, name, value)
        passed = [name for name, value in given.items() if value is not None]
        self.variable_attrs = VariableAttributes(passed, list(self.defaults) + list(variables))  # type: ignore[attr-defined]

    def __getstate__(self) -> Dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("state_dict", None)  # bound to an executor
        state["ipu_state_is_dirty"] = self.has_state()
        state["host_state_is_dirty"] = False
        return state


def _passed(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of a constructor without `self` and what Python adds."""
    return {name: value for name, value in arguments.items() if name != "self" and not name.startswith("__")}


def _for_torch(given: Dict[str, Any], own: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments that torch's constructor takes."""
    return {name: value for name, value in given.items() if value is not None and name not in own}


_ADAM_OWN: Dict[str, Any] = {
    "loss_scaling": 1.0,
    "accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
    "max_grad_norm": float("inf"),
}


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent; `use_combined_accum` keeps gradient and velocity in one tensor."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = _passed(locals())
        own = {
            "loss_scaling": 1.0,
            "use_combined_accum": False,
            "accum_type": torch.float32,
            "velocity_accum_type": torch.float32,
            "max_grad_norm": float("inf"),
        }
        Optimizer.__init__(self)
        torch.optim.SGD.__init__(self, **_for_torch(given, dict(own, velocity_scaling=None)))
        if use_combined_accum:
            self.defaults["velocity_scaling"] = 1.0 if velocity_scaling is None else velocity_scaling
            for group in self.param_groups:
                group.setdefault("velocity_scaling", self.defaults["velocity_scaling"])
        self._own(given, own, ["loss_scaling"])


class Adam(Optimizer, torch.optim.Adam):
    """Adam with coupled weight decay (L2)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = _passed(locals())
        Optimizer.__init__(self)
        torch.optim.Adam.__init__(self, **_for_torch(given, _ADAM_OWN))
        self._own(given, _ADAM_OWN, ["loss_scaling"])


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay. `bias_correction` has no effect, as in PopTorch 3.4."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = _passed(locals())
        own = dict(_ADAM_OWN, bias_correction=True)
        Optimizer.__init__(self)
        torch.optim.AdamW.__init__(self, **_for_torch(given, own))
        self._own(given, own, ["loss_scaling"])


class LAMB(Optimizer, torch.optim.Optimizer):
    """LAMB (arXiv:1904.00962), whose trust ratio has the weight norm clamped at max_weight_norm."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        given = _passed(locals())
        own = {name: value for name, value in _ADAM_OWN.items() if name != "max_grad_norm"}
        own["bias_correction"] = True
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0}
        defaults.update({name: given[name] for name in defaults if given[name] is not None})
        Optimizer.__init__(self)
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._own(given, own, ["loss_scaling"])

    def step(self, closure: Any = None) -> Any:
        """Not for the host: see vit_ipu.simulator.updates."""
        raise NotImplementedError("poptorch.optim.LAMB.step on the host is not simulated")


class Attributes:
    """What the IPU knows of an optimizer: its kind and the values at the time of setOptimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.kind = _kind_of(optimizer)
        self.groups = [dict(group, params=tuple(group["params"])) for group in optimizer.param_groups]
        if self.kind in ("adam", "adamw") and any(group["amsgrad"] for group in self.groups):
            raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
        self.loss_scaling = float(getattr(optimizer, "loss_scaling", 1.0))
        self.max_grad_norm = float(getattr(optimizer, "max_grad_norm", float("inf")))
        self.bias_correction = bool(getattr(optimizer, "bias_correction", True)) or self.kind == "adamw"
        self.accum_type = getattr(optimizer, "accum_type", torch.float32)
        self._variable = getattr(optimizer, "variable_attrs", None)

    def check_replaces(self, compiled: "Attributes") -> None:
        """Raises Error if these attributes need another program than the one compiled for `compiled`."""
        if self.kind != compiled.kind or len(self.groups) != len(compiled.groups):
            raise error(
                "The new optimizer is {} with {} groups but the executable was compiled for {} with {}".format(
                    self.kind, len(self.groups), compiled.kind, len(compiled.groups)
                )
            )
        if compiled.is_constant("loss_scaling", compiled.loss_scaling):
            _check_constant("loss_scaling", compiled.loss_scaling, self.loss_scaling)
        for old, new in zip(compiled.groups, self.groups):
            for name in set(old) & set(_CONSTANT_VALUES):
                if compiled.is_constant(name, old[name]):
                    _check_constant(name, old[name], new[name])

    def is_constant(self, name: str, value: Any) -> bool:
        """Whether an attribute with this value is compiled in (python/_optimizer_attributes.py:158-187).

        Of PopTorch's optimizers, what the constructor was not given; of torch's, what has its default value.
        """
        if self._variable is not None:
            return self._variable.isConstant(name)
        constant = _CONSTANT_VALUES[name]
        if name == "weight_decay" and self.kind == "adamw":
            constant = 1e-2
        return constant is _ALWAYS or value == constant


_ALWAYS, _NEVER = object(), object()
_CONSTANT_VALUES: Dict[str, Any] = {
    "lr": _NEVER,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "dampening": 0.0,
    "eps": 1e-8,
    "betas": _ALWAYS,
    "nesterov": _ALWAYS,
    "max_weight_norm": 65500.0,
    "loss_scaling": 1.0,
}


def _check_constant(name: str, old: Any, new: Any) -> None:
    if new != old:
        raise error(
            "Attribute {} is constant in the compiled optimizer: it cannot change from {} to {}".format(name, old, new)
        )


def _kind_of(optimizer: torch.optim.Optimizer) -> str:
    # AdamW comes first: newer versions of torch derive it from Adam
    for kind, types in (
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        ("lamb", LAMB),
    ):
        if isinstance(optimizer, types):
            return kind
    if isinstance(optimizer, torch.optim.RMSprop):
        raise NotImplementedError("the optimizer RMSprop is not simulated")
    raise AssertionError("Unsupported optimizer type. Types supported: SGD, Adam, AdamW, RMSprop, LAMB")

"""PopTorch's optimizers (python/optim.py): torch's optimizers with loss scaling and dtypes for their state.

The optimizers only hold attributes, which updates/attributes.py reads; the arithmetic runs on the simulated IPU
(updates/). An attribute that is passed to the constructor is variable and may change between calls; an attribute that
is not passed is compiled in.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from vit_ipu.simulator.logs import logger

_STATE_TYPES = (torch.float16, torch.float32)


class VariableAttributes:
    """Records which attributes of an optimizer may change after compilation."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes, self._allowed_attributes = list(variable_attributes), list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        self._check(attr)
        self._variable_attributes = [name for name in self._variable_attributes if name != attr]

    def markAsVariable(self, attr: str) -> None:
        self._check(attr)
        self._variable_attributes.append(attr)

    def _check(self, attr: str) -> None:
        assert attr in self._allowed_attributes, f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"


class Optimizer:
    """Holds the part of an optimizer's state that lives on the IPU, and whether the host's copy is current."""

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
        """Sets the attributes that torch's optimizer lacks, and checks the attributes that are dtypes."""
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
    """Returns the arguments of a constructor without `self` and the names that Python adds."""
    return {name: value for name, value in arguments.items() if name != "self" and not name.startswith("__")}


def _for_torch(given: Dict[str, Any], own: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the arguments that torch's constructor takes."""
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
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning(
                "velocity_scaling value ignored when using the separate variant (use_combined_accum=False). In future, "
                "this will lead to an error. Please update your code."
            )
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


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop with an optional L2 term; `use_tf_variant` selects TensorFlow's variant of RMSprop.

    TensorFlow's variant starts the average square at ones, and puts eps under the root and the learning rate into the
    momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        given = _passed(locals())
        own = {name: value for name, value in _ADAM_OWN.items() if name != "max_grad_norm"}
        own["use_tf_variant"] = False
        Optimizer.__init__(self)
        torch.optim.RMSprop.__init__(self, **_for_torch(given, own))
        self._own(given, own, ["loss_scaling"])


class LAMB(Optimizer, torch.optim.Optimizer):
    """LAMB (arXiv:1904.00962) with the weight norm in the trust ratio clamped at max_weight_norm."""

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

        self.max_weight_norm = defaults["max_weight_norm"]

    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """Makes one update on the host from torch's gradients; returns the result of `closure`."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_of(parameter, group)
        return loss

    def _step_of(self, parameter: torch.Tensor, group: Dict[str, Any]) -> None:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        assert gradient is not None
        if not state:
            zeros = torch.zeros_like
            state.update(step=0, exp_avg=zeros(parameter), exp_avg_sq=zeros(parameter))
        state["step"] += 1
        corrections = [1 - beta ** state["step"] if self.bias_correction else 1.0 for beta in (beta1, beta2)]  # type: ignore[attr-defined]
        first = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = first / corrections[0] / ((second / corrections[1]).sqrt() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        weight_norm, update_norm = parameter.norm().clamp(max=group["max_weight_norm"]), update.norm()
        trust = float(weight_norm / update_norm) if weight_norm > 0 and update_norm > 0 else 1.0
        parameter.add_(update, alpha=-group["lr"] * trust)

"""The rules by which PopART's optimizers change a weight and its state.

Each rule has three parts: `new_state`; `enter`, which returns the tensor that clipping acts on; and `update`, which
uses the clipped tensor. Formats follow PopART: a gradient stays in its accumulator's format unless the gradient is cast
(adamdecompose.cpp, gradCast), a moment has its own format, and an update with weight decay has the weight's format
(popx/op/adamupdaterx.cpp:55-160).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.rounding import Rounding, widened
from vit_ipu.simulator.updates.attributes import Attributes
from vit_ipu.simulator.updates.scalars import Scalars


class Variable(NamedTuple):
    """A weight, its scalars, and its optimizer state by PopART's prefix; `rounding` is set if float16 is stored."""

    weight: Tensor
    scalars: Scalars
    state: Dict[str, Tensor]
    attributes: Attributes
    rounding: Optional[Rounding]
    groups: int = 1
    """The number of groups of replicas that the weight's first dimension counts, if there are several."""

    def new(self, dtype: torch.dtype, value: float = 0.0) -> Tensor:
        """Returns state in the weight's shape: in `dtype` if float16 is stored, else in the weight's format."""
        dtype = dtype if self.rounding is not None else self.weight.dtype
        return torch.full_like(self.weight, value, dtype=dtype, requires_grad=False)

    def change(self, tensor: Tensor, formula: Callable[[Tensor], Any]) -> Tensor:
        """Applies `formula`, which works in place, to a weight or state; returns the new value, widened."""
        wide = widened(tensor)
        formula(wide)
        if wide is tensor:
            return tensor
        assert self.rounding is not None
        rounded = self.rounding.in_float32(wide)
        tensor.copy_(rounded)
        return rounded

    def as_if_in(self, dtype: torch.dtype, values: Tensor) -> Tensor:
        """Returns the values, rounded as if they were stored in `dtype`."""
        if dtype != torch.float16 or self.rounding is None:
            return values
        return self.rounding.in_float32(values.clone() if values.dtype == torch.float32 else values.float())

    def number_in(self, dtype: torch.dtype, value: float) -> float:
        """Returns the number as an expression in `dtype` uses it: rounded to the nearest float16 in float16.

        Constants have the format of the tensor that they meet (poplibs lib/popops/ElementWiseInternal.cpp:93-171).
        """
        is_half = dtype == torch.float16 and self.rounding is not None
        return float(torch.tensor(value, dtype=torch.float16)) if is_half else value

    def norm(self, tensor: Tensor) -> Tensor:
        """Returns the norm of a tensor in the weight's shape, or the norm of each group's part."""
        if self.groups == 1:
            return tensor.norm()
        return tensor.flatten(1).norm(dim=1).reshape(-1, *[1] * (tensor.dim() - 1))


class _SGD:
    """SGD without a velocity (SGD0), or with a velocity that is kept apart from the gradient (SGD2)."""

    is_elementwise = True
    """An element's update depends on no other element."""
    suffix, prefix = "2", "Accl1___"

    @classmethod
    def new_state(cls, variable: Variable) -> Dict[str, Tensor]:
        if "scaledLearningRate0" in variable.scalars.values:
            return {}
        return {cls.prefix: variable.new(variable.attributes.moment_types[0])}

    @classmethod
    def enter(cls, variable: Variable, gradient: Tensor, factor: float) -> Tensor:
        gradient, scalars = widened(gradient), variable.scalars.values
        if "scaledLearningRate0" in scalars:
            return gradient if factor == 1 else gradient.div_(factor)
        velocity = cls._velocity(variable, gradient, scalars["dampeningScaleFactor" + cls.suffix] / factor)
        if "sgdMomentum" not in scalars:
            return velocity
        inverse = scalars["dampeningScaleFactor" + cls.suffix] * scalars["nesterovDampeningScaleFactor" + cls.suffix]
        gradient.mul_(inverse / factor).add_(widened(variable.weight), alpha=scalars["sgdWeightDecay"])
        return gradient.mul_(scalars["nesterovGradScaleFactor" + cls.suffix]).add_(
            velocity, alpha=scalars["sgdMomentum"]
        )

    @classmethod
    def _velocity(cls, variable: Variable, gradient: Tensor, scale: float) -> Tensor:
        scalars, velocity = variable.scalars.values, variable.state[cls.prefix]
        decay, weight = scalars["scaledWeightDecay1"], widened(variable.weight)
        variable.change(velocity, lambda v: v.mul_(scalars["scaledMomentum2"]).add_(weight, alpha=decay))
        return variable.change(velocity, lambda v: v.add_(gradient, alpha=scale))

    @classmethod
    def update(cls, variable: Variable, entered: Tensor) -> None:
        scalars, weight = variable.scalars.values, variable.weight
        if "scaledLearningRate0" not in scalars:
            variable.change(weight, lambda w: w.add_(entered, alpha=-scalars["scaledLearningRate" + cls.suffix]))
            return
        if scalars["weightDecayScaleFactor0"] != 1:
            variable.change(weight, lambda w: w.mul_(scalars["weightDecayScaleFactor0"]))
        variable.change(weight, lambda w: w.add_(entered, alpha=-scalars["scaledLearningRate0"]))


class _CombinedSGD(_SGD):
    """SGD whose update ends with the velocity's decay for the next update, which then only adds the gradient (SGD1).

    The decay multiplies by the momentum and adds the weight decay, so that a change of either acts on the velocity one
    update late, as in PopART (sgd.hpp:388-397). Replicas that sum velocities multiply the velocity by their number.
    """

    suffix, prefix = "1", "Accl___"

    @classmethod
    def new_state(cls, variable: Variable) -> Dict[str, Tensor]:
        if "scaledLearningRate0" in variable.scalars.values:
            return {}
        decay = variable.scalars.values["scaledWeightDecay1"]
        velocity = variable.new(variable.weight.dtype)
        variable.change(velocity, lambda v: v.add_(widened(variable.weight.detach()), alpha=decay))
        return {cls.prefix: velocity}

    @classmethod
    def _velocity(cls, variable: Variable, gradient: Tensor, scale: float) -> Tensor:
        replicas = variable.scalars.replicas
        return variable.change(variable.state[cls.prefix], lambda v: v.mul_(replicas).add_(gradient, alpha=scale))

    @classmethod
    def update(cls, variable: Variable, entered: Tensor) -> None:
        super().update(variable, entered)
        scalars = variable.scalars.values
        if cls.prefix in variable.state:
            momentum, decay = scalars["scaledMomentum1"], scalars["scaledWeightDecay1"]
            weight = widened(variable.weight)
            variable.change(variable.state[cls.prefix], lambda v: v.mul_(momentum).add_(weight, alpha=decay))


def _unscaled(variable: Variable, gradient: Tensor, scale: float, *, decay: float = 0.0) -> Tensor:
    """Returns the gradient without loss scale, plus the L2 term; in float32 if it is cast for float32 moments."""
    both_wide = all(dtype == torch.float32 for dtype in variable.attributes.moment_types)
    is_cast = variable.attributes.accum_type == torch.float16 and both_wide
    dtype = torch.float32 if is_cast else gradient.dtype
    gradient = variable.as_if_in(dtype, widened(gradient).mul_(scale))
    if decay:
        gradient = variable.as_if_in(dtype, gradient.add_(widened(variable.weight), alpha=decay))
    return gradient


class _AdamW:
    """AdamW: clipping acts on the gradient; weight decay is decoupled."""

    is_elementwise, decays, corrects_bias = True, True, True

    @classmethod
    def new_state(cls, variable: Variable) -> Dict[str, Tensor]:
        first, second = variable.attributes.moment_types
        state = {"Accl1___": variable.new(first), "Accl2___": variable.new(second)}
        if cls.corrects_bias:
            state["Step___"] = torch.zeros([variable.groups] if variable.groups > 1 else [])
        return state

    @classmethod
    def enter(cls, variable: Variable, gradient: Tensor, factor: float) -> Tensor:
        scalars = variable.scalars.values
        decay = 0.0 if cls.decays else scalars["weightDecay"]
        return _unscaled(variable, gradient, scalars["adamGradientScaling"] / factor, decay=decay)

    @classmethod
    def update(cls, variable: Variable, entered: Tensor) -> None:
        step = cls._step(variable, entered)
        rate = variable.scalars.values["learningRate"]
        variable.change(variable.weight, lambda w: w.add_(step, alpha=-rate))

    @classmethod
    def _step(cls, variable: Variable, gradient: Tensor) -> Tensor:
        """Returns m / (sqrt(v) + eps), with both moments corrected for their start at zero, plus the decayed weight."""
        scalars, state = variable.scalars.values, variable.state
        beta1, beta2 = scalars["adamBeta1"], scalars["adamBeta2"]
        first_type, second_type = state["Accl1___"].dtype, state["Accl2___"].dtype
        for_first, for_second = (variable.as_if_in(dtype, gradient) for dtype in (first_type, second_type))
        first = variable.change(state["Accl1___"], lambda m: m.mul_(beta1).add_(for_first, alpha=1 - beta1))
        second = variable.change(
            state["Accl2___"], lambda v: v.mul_(beta2).addcmul_(for_second, for_second, value=1 - beta2)
        )
        steps = float(state["Step___"].add_(1).max()) if cls.corrects_bias else float("inf")
        first = variable.as_if_in(first_type, first / variable.number_in(first_type, 1 - beta1**steps))
        second = variable.as_if_in(second_type, second / variable.number_in(second_type, 1 - beta2**steps))
        root = variable.as_if_in(second_type, second.sqrt_()).add_(variable.number_in(second_type, scalars["adamEps"]))
        step = variable.as_if_in(second_type, first).div(variable.as_if_in(second_type, root))
        step = variable.as_if_in(second_type, step)
        decay = scalars["weightDecay"]
        if not cls.decays or not (decay or "weightDecay" in variable.scalars.variable):
            return variable.as_if_in(first_type, step)
        return cls._decayed(variable, step, decay)

    @staticmethod
    def _decayed(variable: Variable, step: Tensor, decay: float) -> Tensor:
        """Returns the step plus the decayed weight; both terms and their sum have the weight's format."""
        dtype = variable.weight.dtype
        of_weight = variable.as_if_in(dtype, widened(variable.weight) * variable.number_in(dtype, decay))
        return variable.as_if_in(dtype, variable.as_if_in(dtype, step).add_(of_weight))


class _Adam(_AdamW):
    """Adam: clipping acts on the gradient after the L2 term was added."""

    decays = False


class _LAMB(_AdamW):
    """AdamW's update times the trust ratio: the weight norm, clamped, over the update norm, or 1 if either is 0."""

    is_elementwise = False

    @classmethod
    def _step(cls, variable: Variable, gradient: Tensor) -> Tensor:
        step, limit = super()._step(variable, gradient), variable.scalars.values["maxWeightNorm"]
        weight_norm, step_norm = variable.norm(widened(variable.weight)), variable.norm(step)
        defined = (weight_norm > 0) & (step_norm > 0) & (limit != 0)
        return step.mul_(torch.where(defined, weight_norm.clamp(max=limit) / step_norm, torch.ones_like(step_norm)))


class _LAMBWithoutBiasCorrection(_LAMB):
    corrects_bias = False


class _RMSprop:
    """RMSprop: the gradient over the root of its average square, or if `centered` of its variance.

    Source: popart adaptive.hpp:60-120.
    """

    is_elementwise, centered = True, False

    @classmethod
    def new_state(cls, variable: Variable) -> Dict[str, Tensor]:
        first, second = variable.attributes.moment_types
        state = {"Accl1___": variable.new(first, 1.0 if variable.attributes.use_tf_variant else 0.0)}
        if cls.centered:
            state["Accl2___"] = variable.new(second)
        if variable.scalars.values["adaptiveMomentum"] or "adaptiveMomentum" in variable.scalars.variable:
            state["Accl3___"] = variable.new(torch.float32)
        return state

    @classmethod
    def enter(cls, variable: Variable, gradient: Tensor, factor: float) -> Tensor:
        scalars = variable.scalars.values
        scale = scalars["adaptiveGradientScaling"] / factor
        return _unscaled(variable, gradient, scale, decay=scalars["weightDecay"])

    @classmethod
    def update(cls, variable: Variable, entered: Tensor) -> None:
        scalars, state, tf = variable.scalars.values, variable.state, variable.attributes.use_tf_variant
        rate = scalars["learningRate"]
        step = entered / cls._root(variable, entered)
        if "Accl3___" in state:
            momentum = scalars["adaptiveMomentum"]
            scale = rate if tf else 1.0
            step = variable.change(state["Accl3___"], lambda v: v.mul_(momentum).add_(step, alpha=scale))
            rate = 1.0 if tf else rate
        variable.change(variable.weight, lambda w: w.add_(step, alpha=-rate))

    @classmethod
    def _root(cls, variable: Variable, gradient: Tensor) -> Tensor:
        scalars, state = variable.scalars.values, variable.state
        alpha, eps = scalars["adaptiveAlpha"], scalars["adaptiveEps"]
        dtype = state["Accl1___"].dtype
        squares = variable.as_if_in(dtype, gradient)
        square = variable.change(
            state["Accl1___"], lambda v: v.mul_(alpha).addcmul_(squares, squares, value=1 - alpha)
        ).clone()
        if cls.centered:
            of_mean = variable.as_if_in(state["Accl2___"].dtype, gradient)
            mean = variable.change(state["Accl2___"], lambda m: m.mul_(alpha).add_(of_mean, alpha=1 - alpha))
            square.addcmul_(mean, mean, value=-1)
        root = square.add_(eps).sqrt_() if variable.attributes.use_tf_variant else square.sqrt_().add_(eps)
        return variable.as_if_in(dtype, root)


class _CenteredRMSprop(_RMSprop):
    centered = True


RULES: Dict[str, Any] = {
    "sgd": _SGD,
    "sgd_combined": _CombinedSGD,
    "adam": _Adam,
    "adamw": _AdamW,
    "rmsprop": _RMSprop,
    "rmsprop_centered": _CenteredRMSprop,
    "lamb": _LAMB,
    "lamb_no_bias": _LAMBWithoutBiasCorrection,
}

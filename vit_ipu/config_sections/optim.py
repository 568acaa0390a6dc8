"""Section `optim` of a config."""

from __future__ import annotations

from math import isfinite
from typing import Any, Optional, Tuple, Union

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Annotated, Literal

from vit_ipu.config_sections.types import DropRate, Name, Pair, PositiveFloat, Probability, Rate, Section


def _class_weights(value: Any) -> Any:
    """Refuses other values than null, `balanced` and a list of numbers above 0; a union's own message is long."""
    if value is None or value == "balanced":
        return value
    is_list = isinstance(value, (list, tuple))
    if not is_list or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in value):
        raise ValueError(f"must be balanced, null, or a list of one number for each class, but it is {value!r}")
    for label, one in enumerate(value):
        if not (isfinite(one) and 0 < one <= 1e9):
            raise ValueError(
                f"the weight of class {label} is {one:g}: give each class a number above 0, up to 1e9; to leave a "
                "class out, remove its images"
            )
    return tuple(map(float, value))


ClassWeights = Annotated[
    Optional[Union[Literal["balanced"], Annotated[Tuple[PositiveFloat, ...], Field(strict=False)]]],
    BeforeValidator(_class_weights),
]


class OptimConfig(Section):
    """Optimizer, loss and learning rate schedule; the schedule counts weight updates."""

    optimizer: Literal["sgd", "adam", "adamw", "lamb"]
    """Optimizer: SGD with momentum, Adam with L2, AdamW, or LAMB as in PopTorch."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    """Peak learning rate."""
    momentum: DropRate = 0.9
    """SGD: factor of the momentum."""
    nesterov: bool = False
    """SGD: uses Nesterov's form of momentum."""
    betas: Pair = (0.9, 0.999)
    """Adam, AdamW, LAMB: decay rates of the first and the second moment."""
    eps: PositiveFloat = 1e-8
    """Adam, AdamW, LAMB: constant added to the root of the second moment."""
    weight_decay: Rate = 0.0
    """Weight decay: an L2 term for SGD and Adam, decoupled for AdamW and LAMB."""
    decay_exempt: Annotated[Tuple[Literal["bias", "norm", "cls_token", "pos_embed"], ...], Field(strict=False)] = (
        "bias",
        "norm",
        "cls_token",
        "pos_embed",
    )
    """Kinds of parameters that have no weight decay."""
    bias_correction: bool = True
    """LAMB: divides the moments by 1 - beta**update, which removes their bias towards 0 at the start."""
    use_combined_accum: bool = False
    """IPU: for SGD, adds gradients directly to the velocity, which saves the memory of the accumulated gradient."""
    max_weight_norm: Optional[Rate] = None
    """LAMB: upper clamp of the weight norm in the trust ratio; null: 65500, as in PopTorch."""
    exempt_max_weight_norm: Optional[Rate] = None
    """LAMB: upper clamp as in `max_weight_norm`, for parameters without decay; 0 turns off their trust ratio."""
    max_grad_norm: Optional[PositiveFloat] = None
    """Global norm at which gradients are clipped; null: no clipping."""
    gradient_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the gradients of micro-batches and replicas; `sum` multiplies the mean by gradient accumulation x
    replicas, on every device."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Loss of the training: cross-entropy over the classes, or binary cross-entropy (bce), the mean over samples and
    classes of a separate yes or no for each class. With bce, probabilities are sigmoids, and the loss of evaluations is
    the binary cross-entropy."""
    label_smoothing: DropRate = 0.0
    """Share of the target that is spread evenly over the classes."""
    bce_target_threshold: Optional[Annotated[float, Field(ge=0, lt=1)]] = None
    """Threshold for `loss: bce`: a target above it, after mixing and smoothing, becomes 1 and every other one 0; null:
    targets stay as they are."""
    class_weights: ClassWeights = None
    """Weight of each class in the cross-entropy: `balanced`, which is n / (K x n_k) for n training images of K classes,
    n_k of them of this class; or a list of K numbers, of which only the ratios matter. The weights are scaled to a mean
    of 1 over the training images that are drawn. Evaluations do not weight. null: all classes count alike."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Curve of the learning rate after the warmup: it falls (cosine, linear) or stays (constant)."""
    warmup_updates: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    """Number of updates at the start in which the learning rate rises linearly."""
    warmup_start: Optional[Probability] = None
    """Learning rate at the first update, as a fraction of the peak, which the update after the warmup has; null: the
    first of n has 1/n and the last the peak. At 0 the first host step learns nothing, as in some published recipes."""
    min_learning_rate: Rate = 0.0
    """Learning rate at the end of cosine and linear schedules."""
    layer_decay: Optional[Annotated[float, Field(gt=0, le=1)]] = None
    """Factor on the learning rate from each layer to the one before it, as in timm (arXiv:2003.10555): the head has the
    full rate, the last block this factor, the embedding its power of `depth` + 1; null: one rate for all."""
    freeze: Annotated[Tuple[Name, ...], Field(strict=False)] = ()
    """Parts of the model that keep their weights: `embed`, `blocks`, `blocks.3`, `blocks.0-7`, `norm`, `pre_logits`.
    The head is always trained; `[embed, blocks, norm]` trains only the head (a linear probe)."""
    ema_decay: Optional[Annotated[float, Field(gt=0, lt=1)]] = None
    """Decay per update of the exponential moving average of the weights, which evaluation, prediction and export then
    use; null: no average. It changes after each host step, by the decay to the power of `device_iterations`. On IPUs,
    each host step then copies the weights to the host."""

    @model_validator(mode="after")
    def _check_learning_rates(self) -> OptimConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: swap them"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas: {beta} is not in [0, 1): give two numbers such as [0.9, 0.999]")
        if self.use_combined_accum and self.optimizer != "sgd":
            raise ValueError(f"use_combined_accum: {self.optimizer} has no velocity: set it to false, or use sgd")
        if not self.bias_correction and self.optimizer != "lamb":
            raise ValueError(f"bias_correction: false is only for lamb, not {self.optimizer}: set it to true")
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov: true needs momentum above 0, but it is {self.momentum}: change one of them")
        return self

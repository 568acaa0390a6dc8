"""Parameter groups, learning rate schedule and LAMB, shared by every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch
from torch import nn

from vit_ipu.config import OptimConfig

DEFAULT_MAX_WEIGHT_NORM = 65500.0
"""PopTorch's default for LAMB (python/optim.py:685)."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share their weight decay and, for LAMB, the clamp of their weight norm."""

    names: Tuple[str, ...]
    weight_decay: float
    max_weight_norm: float


def parameter_groups(model: nn.Module, config: OptimConfig) -> List[ParameterGroup]:
    """Returns the decayed and the exempt parameters by name, in the model's order; empty groups are left out."""
    decayed: List[str] = []
    exempt: List[str] = []
    for name, parameter in model.named_parameters():
        (exempt if _kind_of(name, parameter) in config.decay_exempt else decayed).append(name)
    clamp, exempt_clamp = _or_default(config.max_weight_norm), _or_default(config.exempt_max_weight_norm)
    groups = [
        ParameterGroup(tuple(decayed), config.weight_decay, clamp),
        ParameterGroup(tuple(exempt), 0.0, exempt_clamp),
    ]
    return [group for group in groups if group.names]


def optimizer_groups(model: nn.Module, config: OptimConfig) -> List[Dict[str, Any]]:
    """Returns the groups of `parameter_groups` in the form that optimizers of torch and PopTorch take."""
    parameters = dict(model.named_parameters())
    groups: List[Dict[str, Any]] = []
    for group in parameter_groups(model, config):
        groups.append({"params": [parameters[name] for name in group.names], "weight_decay": group.weight_decay})
        if config.optimizer == "lamb":
            groups[-1]["max_weight_norm"] = group.max_weight_norm
    return groups


def _or_default(max_weight_norm: Optional[float]) -> float:
    return DEFAULT_MAX_WEIGHT_NORM if max_weight_norm is None else max_weight_norm


def _kind_of(name: str, parameter: nn.Parameter) -> str:
    last = name.rpartition(".")[2]
    if last in ("cls_token", "pos_embed"):
        return last
    if last == "bias":
        return "bias"
    return "norm" if parameter.ndim == 1 else "weight"


def learning_rate(update: int, total_updates: int, config: OptimConfig) -> float:
    """Returns the learning rate of update `update`, counted from 0, of `total_updates`.

    The rate rises linearly from warmup_start x peak to the peak at update warmup_updates; without warmup_start, from
    peak / warmup_updates to the peak one update earlier. Then it falls along a half cosine or a line to
    min_learning_rate at total_updates, or stays constant.
    """
    peak, warmup = config.learning_rate, config.warmup_updates
    if update < warmup:
        if config.warmup_start is None:
            return peak * (update + 1) / warmup
        return peak * (config.warmup_start + (1 - config.warmup_start) * update / warmup)
    if config.schedule == "constant":
        return peak
    progress = min((update - warmup) / max(total_updates - warmup, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.min_learning_rate + (peak - config.min_learning_rate) * left


class LAMB(torch.optim.Optimizer):
    """LAMB (arXiv:1904.00962) with PopTorch's clamp: the weight norm in the trust ratio is at most max_weight_norm.

    The clamp is set per group. The trust ratio is 1 if either norm is zero, so max_weight_norm 0 turns the ratio off.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_weight_norm: float = DEFAULT_MAX_WEIGHT_NORM,
        bias_correction: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_weight_norm": max_weight_norm,
            "bias_correction": bias_correction,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: Dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = int(state["step"].item())
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        assert gradient is not None
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
        mean = state["exp_avg"] / correction1
        root = (state["exp_avg_sq"] / correction2).sqrt()
        update = mean / (root + group["eps"]) + group["weight_decay"] * parameter
        trust = _trust_ratio(parameter, update, group["max_weight_norm"])
        parameter.sub_(group["lr"] * trust * update)


def _trust_ratio(weight: torch.Tensor, update: torch.Tensor, max_weight_norm: float) -> torch.Tensor:
    weight_norm = weight.norm().clamp(max=max_weight_norm)
    update_norm = update.norm()
    ratio = weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))

"""Trained parameters and their groups, learning rate schedule and LAMB, shared by every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import nn

from vit_ipu.config import OptimConfig
from vit_ipu.units import frozen_units, unit_of

DEFAULT_MAX_WEIGHT_NORM = 65500.0
"""PopTorch's default for LAMB (python/optim.py:685)."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share their weight decay, their learning rate and, for LAMB, the clamp of their weight norm."""

    names: Tuple[str, ...]
    weight_decay: float
    max_weight_norm: float
    learning_rate_scale: float = 1.0
    """Factor on the learning rate of the schedule."""


def freeze(model: nn.Module, config: OptimConfig) -> None:
    """Excludes the parameters that `optim.freeze` names from training, before an optimizer or a copy is made."""
    frozen = frozen_units(config.freeze, _depth(model))
    for name, parameter in model.named_parameters():
        if unit_of(name) in frozen:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, config: OptimConfig) -> List[ParameterGroup]:
    """Returns the trained parameters by name: the decayed and the exempt ones, in the model's order.

    With layer decay, there are these groups for each layer, from the embedding to the head. Empty groups are left out.
    """
    clamp, exempt_clamp = _or_default(config.max_weight_norm), _or_default(config.exempt_max_weight_norm)
    names: Dict[Tuple[int, bool], List[str]] = {}
    depth = _depth(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = 0 if config.layer_decay is None else _layer_of(name, depth)
            names.setdefault((layer, _kind_of(name, parameter) in config.decay_exempt), []).append(name)
    groups = []
    for (layer, is_exempt), members in sorted(names.items()):
        decay, norm = (0.0, exempt_clamp) if is_exempt else (config.weight_decay, clamp)
        scale = 1.0 if config.layer_decay is None else config.layer_decay ** (depth + 1 - layer)
        groups.append(ParameterGroup(tuple(members), decay, norm, scale))
    return groups


def _layer_of(name: str, depth: int) -> int:
    """Returns the layer of a parameter for layer decay, as timm counts them (optim/_param_groups.py).

    The embedding is 0, block N is N + 1, the final norm belongs to the last block, and the head is depth + 1.
    """
    unit = unit_of(name)
    if unit.startswith("blocks."):
        return int(unit.partition(".")[2]) + 1
    return {"embed": 0, "norm": depth}.get(unit, depth + 1)


def _depth(model: nn.Module) -> int:
    return len({unit_of(name) for name, _ in model.named_parameters() if name.startswith("blocks.")})


def optimizer_groups(model: nn.Module, config: OptimConfig) -> List[Dict[str, Any]]:
    """Returns the groups of `parameter_groups` in the form that optimizers of torch and PopTorch take."""
    parameters = dict(model.named_parameters())
    groups: List[Dict[str, Any]] = []
    for group in parameter_groups(model, config):
        groups.append({"params": [parameters[name] for name in group.names], "weight_decay": group.weight_decay})
        if config.layer_decay is not None:
            groups[-1]["lr"] = config.learning_rate * group.learning_rate_scale
        if config.optimizer == "lamb":
            groups[-1]["max_weight_norm"] = group.max_weight_norm
    return groups


def set_learning_rate(optimizer: Any, groups: Sequence[ParameterGroup], learning_rate: float) -> None:
    """Sets the learning rate of the schedule in the groups of an optimizer, which were made of `groups`."""
    for group, values in zip(groups, optimizer.param_groups):
        values["lr"] = learning_rate * group.learning_rate_scale


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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: List[torch.Tensor], group: Dict[str, Any]) -> None:
        """Updates all parameters together, which on a GPU takes few kernels."""
        states = [self._state_of(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        steps = [int(state["step"].item()) for state in states]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        if group["bias_correction"]:
            means = list(torch._foreach_div(means, [1 - beta1**step for step in steps]))
            squares = list(torch._foreach_div(squares, [1 - beta2**step for step in steps]))
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_add_(updates, torch._foreach_mul(parameters, group["weight_decay"]))
        weight_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
        scales = group["lr"] * _trust_ratios(weight_norms, update_norms, group["max_weight_norm"])
        torch._foreach_mul_(updates, list(scales.unbind()))
        torch._foreach_sub_(parameters, updates)

    def _state_of(self, parameter: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Returns the state of a parameter, which counts this step."""
        state: Dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state


def _trust_ratios(weight_norms: torch.Tensor, update_norms: torch.Tensor, max_weight_norm: float) -> torch.Tensor:
    weight_norms = weight_norms.clamp(max=max_weight_norm)
    is_usual = (weight_norms > 0) & (update_norms > 0)
    return torch.where(is_usual, weight_norms / update_norms, torch.ones_like(update_norms))

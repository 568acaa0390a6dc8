"""Builds an optimizer from a config: one of torch.optim, or this program's own LAMB."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from vit_ipu.config import Config
from vit_ipu.optim import LAMB, optimizer_groups

_HAS_FUSED_SGD = "fused" in inspect.signature(torch.optim.SGD.__init__).parameters


def build_optimizer(model: nn.Module, config: Config, *, fused: bool) -> torch.optim.Optimizer:
    """Returns the optimizer of a config, over the decayed and the exempt parameters of `model`."""
    optim = config.optim
    groups = optimizer_groups(model, optim)
    if optim.optimizer == "sgd":
        options = {"fused": True} if fused and _HAS_FUSED_SGD else {}
        return torch.optim.SGD(
            groups, lr=optim.learning_rate, momentum=optim.momentum, nesterov=optim.nesterov, **options
        )
    if optim.optimizer == "lamb":
        return LAMB(
            groups,
            lr=optim.learning_rate,
            betas=optim.betas,
            eps=optim.eps,
            bias_correction=optim.bias_correction,
        )
    adam = torch.optim.Adam if optim.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=optim.learning_rate, betas=optim.betas, eps=optim.eps, fused=fused)

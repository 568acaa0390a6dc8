"""Builds an optimizer from a config: one of torch.optim, or this program's own LAMB."""

from __future__ import annotations

import torch
from torch import nn

from vit_ipu.config import Config
from vit_ipu.optim import LAMB, optimizer_groups


def build_optimizer(model: nn.Module, config: Config, *, fused: bool) -> torch.optim.Optimizer:
    """Returns the optimizer of a config, over the decayed and the exempt parameters of `model`."""
    optim = config.optim
    groups = optimizer_groups(model, optim)
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=optim.learning_rate, momentum=optim.momentum, nesterov=optim.nesterov)
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

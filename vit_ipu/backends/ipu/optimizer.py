"""Builds a poptorch optimizer from a config.

An attribute that is given to the constructor may change between calls; an attribute that is left out is compiled in.
"""

from __future__ import annotations

from typing import Any, Dict

import poptorch
from torch import nn

from vit_ipu.backends.ipu.options import DTYPES
from vit_ipu.config import Config
from vit_ipu.optim import optimizer_groups


def build_optimizer(model: nn.Module, config: Config) -> Any:
    """Returns the poptorch optimizer of a config, over the decayed and the exempt parameters of `model`."""
    optim = config.optim
    groups = optimizer_groups(model, optim)
    if optim.optimizer == "sgd":
        return poptorch.optim.SGD(groups, **_sgd_arguments(config))
    if optim.optimizer == "lamb":
        return poptorch.optim.LAMB(groups, bias_correction=optim.bias_correction, **_adam_arguments(config))
    if optim.optimizer == "adam":
        return poptorch.optim.Adam(groups, **_adam_arguments(config))
    arguments = _adam_arguments(config)
    if optim.max_grad_norm is not None:
        arguments["max_grad_norm"] = optim.max_grad_norm
    return poptorch.optim.AdamW(groups, **arguments)


def _sgd_arguments(config: Config) -> Dict[str, Any]:
    optim, precision = config.optim, config.precision
    arguments: Dict[str, Any] = {
        "lr": optim.learning_rate,
        "weight_decay": optim.weight_decay,
        "loss_scaling": precision.loss_scale,
        "accum_type": DTYPES[precision.accumulation],
        "use_combined_accum": optim.use_combined_accum,
    }
    if not optim.use_combined_accum:
        arguments["velocity_accum_type"] = DTYPES[precision.first_moment]
    if optim.momentum:
        arguments.update(momentum=optim.momentum, nesterov=optim.nesterov)
    return arguments


def _adam_arguments(config: Config) -> Dict[str, Any]:
    optim, precision = config.optim, config.precision
    return {
        "lr": optim.learning_rate,
        "betas": optim.betas,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "loss_scaling": precision.loss_scale,
        "accum_type": DTYPES[precision.accumulation],
        "first_order_momentum_accum_type": DTYPES[precision.first_moment],
        "second_order_momentum_accum_type": DTYPES[precision.second_moment],
    }

"""PopTorch's optimizers that follow from a config."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_for, random_batch, relative_errors, tiny_config, with_random_head

from vit_ipu import simulator
from vit_ipu.errors import ConfigError
from vit_ipu.model import ViT

pytestmark = pytest.mark.usefixtures("ipu")

OPTIMIZERS = [
    ("sgd", {"momentum": 0.8, "nesterov": True}, simulator.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ("sgd", {"momentum": 0.0}, simulator.optim.SGD, {"momentum": 0, "nesterov": False}),
    ("adam", {"betas": [0.8, 0.9], "eps": 1e-6}, simulator.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ("adamw", {"max_grad_norm": 2.0}, simulator.optim.AdamW, {}),
    ("lamb", {"max_weight_norm": 9.0, "exempt_max_weight_norm": 0.0}, simulator.optim.LAMB, {}),
    (
        "lamb",
        {"bias_correction": False, "max_weight_norm": 9.0, "exempt_max_weight_norm": 0.0},
        simulator.optim.LAMB,
        {},
    ),
]


@pytest.mark.parametrize(("name", "change", "kind", "expected"), OPTIMIZERS)
def test_optimizer_has_the_configs_attributes(ipu, name, change, kind, expected):
    precision = {"compute": "float16", "loss_scale": 64.0, "accumulation": "float16", "first_moment": "float16"}
    config = tiny_config(
        optim={"optimizer": name, "weight_decay": 0.1, "learning_rate": 0.02, **change}, precision=precision
    )
    optimizer = ipu.optimizer.build_optimizer(ViT(config.model), config)
    assert type(optimizer) is kind
    decayed, exempt = optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"], decayed["lr"]) == (0.1, 0.0, 0.02)
    for key, value in expected.items():
        assert decayed[key] == value
    assert optimizer.loss_scaling == 64.0
    assert optimizer.accum_type == torch.float16
    moment = "velocity_accum_type" if name == "sgd" else "first_order_momentum_accum_type"
    assert getattr(optimizer, moment) == torch.float16
    assert not optimizer.variable_attrs.isConstant("lr")
    if name == "adamw":
        assert optimizer.max_grad_norm == 2.0
    if name == "lamb":
        assert (decayed["max_weight_norm"], exempt["max_weight_norm"]) == (9.0, 0.0)
        assert optimizer.bias_correction is change.get("bias_correction", True)


def test_sgd_may_combine_accumulation_and_velocity(ipu):
    for combined in (False, True):
        config = tiny_config(optim={"use_combined_accum": combined})
        optimizer = ipu.optimizer.build_optimizer(ViT(config.model), config)
        assert optimizer.use_combined_accum is combined
    errors = relative_errors(*(trained_weights({"use_combined_accum": combined}) for combined in (False, True)))
    assert max(errors.values()) < 1e-6


def trained_weights(optim):
    config = tiny_config(optim=optim)
    backend = backend_for(config, "ipu-sim")
    backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
    for seed in range(3):
        backend.train_step(random_batch(config, seed), 0.05)
    weights = backend.state_dict()["model"]
    backend.close()
    return weights


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"use_combined_accum": True, "optimizer": "adam"}, "use_combined_accum: adam has no velocity"),
        ({"bias_correction": False, "optimizer": "adamw"}, "bias_correction: false is only for lamb, not adamw"),
    ],
)
def test_attributes_of_other_optimizers_are_refused(optim, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(optim=optim)

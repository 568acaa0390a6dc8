"""Parameter groups, schedules and LAMB."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import tiny_config

from vit_ipu.config import ModelConfig, OptimConfig
from vit_ipu.model import ViT
from vit_ipu.optim import DEFAULT_MAX_WEIGHT_NORM, LAMB, learning_rate, parameter_groups


def groups_for(**optim: object):
    model = ViT(ModelConfig(variant="vit_test", image_size=28, num_classes=10, depth=1))
    config = OptimConfig(**{"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, **optim})
    return parameter_groups(model, config)


def test_only_weight_matrices_decay_unless_the_config_says_so():
    decayed, exempt = groups_for()
    assert decayed.names == (
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    )
    assert (decayed.weight_decay, exempt.weight_decay) == (0.1, 0.0)
    assert {"cls_token", "pos_embed", "norm.weight", "norm.bias", "head.bias"} <= set(exempt.names)


def test_groups_of_mmclassification_and_graphcore_can_be_reproduced():
    decayed, exempt = groups_for(decay_exempt=["cls_token", "pos_embed"])  # mmclassification
    assert exempt.names == ("cls_token", "pos_embed")
    decayed, exempt = groups_for(decay_exempt=["bias", "norm"])  # graphcore: all tensors of one dimension
    assert {"cls_token", "pos_embed"} <= set(decayed.names)
    assert len(groups_for(decay_exempt=[])) == 1


def test_weight_norm_clamps_are_per_group():
    decayed, exempt = groups_for(optimizer="lamb", max_weight_norm=10.0, exempt_max_weight_norm=0.0)
    assert (decayed.max_weight_norm, exempt.max_weight_norm) == (10.0, 0.0)
    assert groups_for()[0].max_weight_norm == DEFAULT_MAX_WEIGHT_NORM == 65500.0


def optim(**values: object) -> OptimConfig:
    return OptimConfig(**{"optimizer": "sgd", "learning_rate": 1.0, **values})


@pytest.mark.parametrize(
    ("config", "update", "expected"),
    [
        (optim(schedule="constant"), 7, 1.0),
        (optim(schedule="constant", warmup_updates=4), 0, 0.25),
        (optim(schedule="constant", warmup_updates=4), 3, 1.0),
        (optim(schedule="constant", warmup_updates=1), 0, 1.0),
        (optim(schedule="constant", warmup_updates=4, warmup_start=0.0), 0, 0.0),
        (optim(schedule="constant", warmup_updates=4, warmup_start=0.0), 3, 0.75),
        (optim(schedule="constant", warmup_updates=4, warmup_start=0.2), 0, 0.2),
        (optim(schedule="constant", warmup_updates=4, warmup_start=0.2), 2, 0.6),
        (optim(schedule="linear"), 5, 0.5),
        (optim(schedule="linear", min_learning_rate=0.5), 5, 0.75),
        (optim(schedule="linear", warmup_updates=2), 2, 1.0),
        (optim(schedule="linear", warmup_updates=2), 6, 0.5),
        (optim(), 0, 1.0),
        (optim(), 5, 0.5),
        (optim(), 10, 0.0),
        (optim(min_learning_rate=0.1), 10, 0.1),
        (optim(warmup_updates=2), 4, 0.5 * (1 + math.cos(math.pi / 4))),
    ],
)
def test_schedule(config, update, expected):
    assert learning_rate(update, 10, config) == pytest.approx(expected)


def test_schedule_with_warmup_equals_transformers_form():
    """Compares with the formula of graphcore's and Hugging Face's get_cosine_schedule_with_warmup."""
    config, total = optim(warmup_updates=100, warmup_start=0.0), 625
    for update in range(0, 625, 25):
        if update < 100:
            expected = update / 100
        else:
            expected = max(0.0, 0.5 * (1 + math.cos(math.pi * (update - 100) / (total - 100))))
        assert learning_rate(update, total, config) == pytest.approx(expected)


def scalar_lamb(weight, gradients, *, lr, beta1, beta2, eps, decay, clamp):
    """Returns one tensor after LAMB in plain Python floats (arXiv:1904.00962, algorithm 2, with PopTorch's clamp)."""
    m, v = [0.0] * len(weight), [0.0] * len(weight)
    for step, gradient in enumerate(gradients, start=1):
        m = [beta1 * a + (1 - beta1) * g for a, g in zip(m, gradient)]
        v = [beta2 * a + (1 - beta2) * g * g for a, g in zip(v, gradient)]
        corrected = [(a / (1 - beta1**step), b / (1 - beta2**step)) for a, b in zip(m, v)]
        update = [a / (math.sqrt(b) + eps) + decay * w for (a, b), w in zip(corrected, weight)]
        norm_w = min(math.sqrt(sum(w * w for w in weight)), clamp)
        norm_u = math.sqrt(sum(u * u for u in update))
        trust = norm_w / norm_u if norm_w > 0 and norm_u > 0 else 1.0
        weight = [w - lr * trust * u for w, u in zip(weight, update)]
    return weight


@pytest.mark.parametrize("clamp", [65500.0, 0.5, 0.0])
@pytest.mark.parametrize("start", [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
def test_lamb_equals_a_scalar_reference(clamp, start):
    gradients = [[0.3, -0.1, 2.0], [0.0, 0.2, -1.0], [5.0, 0.1, 0.1]]
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = LAMB([weight], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.05, max_weight_norm=clamp)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    expected = scalar_lamb(start, gradients, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-6, decay=0.05, clamp=clamp)
    assert weight.tolist() == pytest.approx(expected, rel=1e-12)


def test_reduction_factor_is_accumulation_times_replicas_only_if_the_recipe_sums():
    pipeline = {"global_batch_size": 64, "replication_factor": 2}
    assert tiny_config(pipeline=pipeline).reduction_factor == 1
    assert tiny_config(pipeline=pipeline, optim={"gradient_reduction": "sum"}).reduction_factor == 16

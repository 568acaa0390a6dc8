"""Layer decay, frozen weights and the average of the weights: equal on every backend to what timm does.

The reference is timm's own VisionTransformer with timm's parameter groups and timm's ModelEmaV3, in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Dict, List

import pytest
import torch
from helpers import equal_states, random_batch, relative_errors, tiny_config, with_random_head, worst
from parity import IMAGES
from torch import Tensor, nn

from vit_ipu.backends.build import open_backend, resolve_device
from vit_ipu.backends.contract import HostBatch
from vit_ipu.config import Config
from vit_ipu.losses import classification_loss
from vit_ipu.model import ViT
from vit_ipu.optim import learning_rate
from vit_ipu.step import Normalize

UPDATES = 6
DEVICES = ["cpu", "ipu-sim"]


def config_for(optimizer: str = "adamw", **optim: Any) -> Config:
    return tiny_config(
        pipeline={"global_batch_size": 64, "micro_batch_size": 4, "replication_factor": 2},
        precision={"compute": "float64"},
        optim={"optimizer": optimizer, "learning_rate": 2e-3, "weight_decay": 0.05, "warmup_updates": 2, **optim},
        run={"updates": UPDATES},
    )


def start_of(config: Config) -> Dict[str, Tensor]:
    torch.manual_seed(7)
    return with_random_head(ViT(config.model).double().state_dict())


def batches_of(config: Config) -> List[HostBatch]:
    return [random_batch(config, seed) for seed in range(UPDATES)]


def train_on(device: str, config: Config) -> Dict[str, Any]:
    """Returns the backend's state after the updates, and its logits of IMAGES."""
    with open_backend(config, resolve_device(device)) as backend:
        backend.load_state_dict({"model": start_of(config)})
        for update, batch in enumerate(batches_of(config)):
            backend.train_step(batch, learning_rate(update, UPDATES, config.optim))
        return dict(backend.state_dict(), logits=backend.predict(IMAGES))


def timm_model(config: Config) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model = config.model
    return VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.num_heads,
        num_classes=model.num_classes,
        act_layer=partial(nn.GELU, approximate="tanh"),
        norm_layer=partial(nn.LayerNorm, eps=model.layer_norm_eps),
    ).double()


def train_with_timm(
    config: Config,
    groups_of: Callable[[nn.Module], List[Dict[str, Any]]],
    after_update: Callable[[nn.Module], None] = lambda model: None,
) -> Dict[str, Tensor]:
    """Trains timm's model with one loss over each global batch; groups may have timm's `lr_scale`."""
    model, normalize = timm_model(config), Normalize(config.data).double()
    model.load_state_dict(start_of(config))
    optimizer = torch.optim.AdamW(groups_of(model), lr=1.0)
    for update, batch in enumerate(batches_of(config)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, UPDATES, config.optim) * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        classification_loss(model(normalize(batch.images)), batch.labels, 0.0).backward()
        optimizer.step()
        after_update(model)
    return model.state_dict()


def decayed_groups(model: nn.Module) -> List[Dict[str, Any]]:
    from timm.optim import param_groups_weight_decay

    return param_groups_weight_decay(model, 0.05, no_weight_decay_list=["cls_token", "pos_embed"])


@pytest.mark.parametrize("device", DEVICES)
def test_layer_decay_is_timms(device):
    from timm.optim import param_groups_layer_decay

    config = config_for(layer_decay=0.6)
    exempt = ("cls_token", "pos_embed")
    theirs = train_with_timm(
        config, lambda model: param_groups_layer_decay(model, 0.05, no_weight_decay_list=exempt, layer_decay=0.6)
    )
    assert worst(relative_errors(train_on(device, config)["model"], theirs)) < 1e-9
    without = train_with_timm(config, decayed_groups)
    assert worst(relative_errors(without, theirs)) > 1e-3


def test_layer_decay_has_timms_factors():
    from timm.optim import param_groups_layer_decay

    from vit_ipu.optim import parameter_groups

    config = config_for(layer_decay=0.75)
    model = timm_model(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.75)
        for parameter in group["params"]
    }
    groups = parameter_groups(ViT(config.model), config.optim)
    ours = {name: group.learning_rate_scale for group in groups for name in group.names}
    assert ours == pytest.approx(theirs)
    assert ours["head.weight"] == 1.0
    assert ours["cls_token"] == pytest.approx(0.75**5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "freeze", [["embed", "blocks.0-1"], ["embed", "blocks", "norm"], ["blocks.2", "norm"]], ids=str
)
def test_frozen_weights_stay_and_the_others_learn_as_in_timm(device, freeze):
    from vit_ipu.units import frozen_units, unit_of

    config = config_for(freeze=freeze)
    frozen = frozen_units(freeze, config.model.depth)

    def trained(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(unit_of(name) not in frozen)
        return decayed_groups(model)

    start, ours = start_of(config), train_on(device, config)
    theirs = train_with_timm(config, trained)
    assert worst(relative_errors(ours["model"], theirs)) < 1e-9
    unchanged = {name for name in start if torch.equal(ours["model"][name], start[name])}
    assert unchanged == {name for name in start if unit_of(name) in frozen}
    if device == "cpu":  # which keeps optimizer state by name
        assert set(ours["optimizer"]) == set(start) - unchanged


@pytest.mark.parametrize("device", DEVICES)
def test_the_average_of_the_weights_is_timms_and_predicts(device):
    from timm.utils import ModelEmaV3

    config = config_for(ema_decay=0.8)
    averages: List[ModelEmaV3] = []

    def average(model):
        averages[0].update(model)

    def groups_of(model):
        averages.append(ModelEmaV3(model, decay=0.8))
        return decayed_groups(model)

    raw = train_with_timm(config, groups_of, average)
    ours = train_on(device, config)
    averaged = averages[0].module.state_dict()
    assert worst(relative_errors(ours["unaveraged"], raw)) < 1e-9
    assert worst(relative_errors(ours["model"], averaged)) < 1e-9
    assert worst(relative_errors(raw, averaged)) > 1e-3
    with torch.no_grad():
        logits = averages[0].module.eval()(Normalize(config.data).double()(IMAGES)).float()
    torch.testing.assert_close(ours["logits"], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_average_is_the_same_on_every_device(iterations):
    pipeline = {"global_batch_size": 32, "micro_batch_size": 4, "device_iterations": iterations}
    config = tiny_config(pipeline=pipeline, optim={"ema_decay": 0.9}, run={"updates": 4})
    batches = [random_batch(config, seed) for seed in range(4 // iterations)]
    states = {}
    for device in DEVICES:
        with open_backend(config, resolve_device(device)) as backend:
            start = with_random_head(backend.state_dict()["model"])
            backend.load_state_dict({"model": start})
            history = [start]
            for batch in batches:
                backend.train_step(batch, 0.05)
                history.append(backend.state_dict()["unaveraged"])
            states[device] = backend.state_dict()
        expected = history[0]
        for weights in history[1:]:
            factor = 0.9**iterations
            expected = {name: factor * expected[name] + (1 - factor) * weights[name] for name in expected}
        assert worst(relative_errors(states[device]["model"], expected)) < 1e-6
    assert worst(relative_errors(states["cpu"]["model"], states["ipu-sim"]["model"])) < 1e-5


def test_an_average_of_float16_weights_is_float32():
    config = tiny_config(precision={"compute": "float16", "loss_scale": 64}, optim={"ema_decay": 0.999})
    with open_backend(config, resolve_device("ipu-sim")) as backend:
        backend.train_step(random_batch(config), 0.05)
        state = backend.state_dict()
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.float32}
    assert {tensor.dtype for tensor in state["unaveraged"].values()} == {torch.float16}
    assert any(not torch.equal(state["model"][name], value.float()) for name, value in state["unaveraged"].items())


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_does_not_change_while_training_continues(device):
    config = tiny_config(optim={"ema_decay": 0.5})
    with open_backend(config, resolve_device(device)) as backend:
        backend.train_step(random_batch(config), 0.05)
        state = backend.state_dict()
        before = {name: tensor.clone() for name, tensor in state["model"].items()}
        backend.train_step(random_batch(config, 1), 0.05)
        assert equal_states(state["model"], before)
        assert not equal_states(backend.state_dict()["model"], before)


def test_bfloat16_weights_are_averaged_and_frozen():
    """The working copy of the weights, which CPUs can compute with too, has an average of its own."""
    config = tiny_config(precision={"compute": "bfloat16"}, optim={"ema_decay": 0.5, "freeze": ["embed", "blocks.1"]})
    with open_backend(config, resolve_device("cpu")) as backend:
        before = backend.state_dict()["model"]
        backend.load_state_dict({"model": with_random_head(before)})
        backend.train_step(random_batch(config), 0.05)
        state, logits = backend.state_dict(), backend.predict(IMAGES)
    assert torch.equal(state["unaveraged"]["cls_token"], before["cls_token"])
    assert torch.equal(state["model"]["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"])
    assert not torch.equal(state["unaveraged"]["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])
    plain = tiny_config(precision={"compute": "bfloat16"})
    with open_backend(plain, resolve_device("cpu")) as backend:
        backend.load_state_dict({"model": state["model"]})
        torch.testing.assert_close(backend.predict(IMAGES), logits)

"""Tests on IPUs: the quickstart, and one host step of each config that fits. `make test-ipu` also writes a record.

None of these tests has ever been run on hardware; other tests run the same code on the simulator.
"""

from __future__ import annotations

import json
import math

import pytest
from helpers import random_batch, random_images, relative_errors, tiny_config, vit_ipu, worst

from vit_ipu.backends.build import open_backend, resolve_device
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.pipeline import num_ipus


def one_step_config(name):
    """Returns a shipped config with random weights, which reads nothing from disk and writes nothing to it."""
    overrides = ["model.init=null", "pipeline.executable_cache=null"]
    return load_config(shipped_configs()[name], overrides)


CONFIGS = [
    pytest.param(name, marks=pytest.mark.ipus(num_ipus(one_step_config(name))))
    for name in sorted(shipped_configs())
    if not one_step_config(name).batch_sizes_left_out  # which is for a GPU
]


@pytest.mark.parametrize("name", CONFIGS)
def test_one_host_step_of_a_shipped_config_has_the_expected_loss(name):
    config = one_step_config(name)
    with open_backend(config, resolve_device("ipu")) as backend:
        result = backend.train_step(random_batch(config), config.optim.learning_rate / 100)
    assert math.isfinite(result.loss)
    assert result.loss == pytest.approx(math.log(config.model.num_classes), abs=1.0)


@pytest.mark.ipus(4)
def test_the_quickstart_learns(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = vit_ipu(monkeypatch, capsys, "train", "quickstart", "--device", "ipu", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["simulated"] is False
    assert summary["top1"] >= 86  # 88.7 to 89.7 % simulated


@pytest.mark.ipus(4)
def test_training_and_inference_take_turns_on_the_same_ipus():
    config = tiny_config()
    images = random_images(9)
    with open_backend(config, resolve_device("ipu")) as backend:
        for seed in range(2):
            backend.train_step(random_batch(config, seed), 0.05)
            logits, weights = backend.predict(images), backend.state_dict()["model"]
            with open_backend(config, resolve_device("cpu")) as native:
                native.load_state_dict({"model": weights})
                difference = (native.predict(images) - logits).abs().max()
            assert difference < 0.05


@pytest.mark.ipus(4)
def test_training_continues_from_a_loaded_state():
    config = tiny_config(optim={"optimizer": "adamw", "learning_rate": 1e-3})
    states = []
    with open_backend(config, resolve_device("ipu")) as backend:
        backend.train_step(random_batch(config), 1e-3)
        state = backend.state_dict()
        backend.train_step(random_batch(config, 1), 1e-3)
        states.append(backend.state_dict()["model"])
    with open_backend(config, resolve_device("ipu")) as backend:
        backend.load_state_dict(state)
        backend.train_step(random_batch(config, 1), 1e-3)
        states.append(backend.state_dict()["model"])
    assert worst(relative_errors(*states)) < 1e-4

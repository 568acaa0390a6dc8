"""Tests on a CUDA device: parity with the CPU, and training from end to end. benchmarks/records has the last result."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import (
    backend_for,
    equal_states,
    random_batch,
    random_images,
    relative_errors,
    tiny_config,
    vit_ipu,
    with_random_head,
    worst,
    write_config,
    write_image_folder,
)
from mixing_parity import KINDS
from mixing_parity import check_parity as check_mixing_parity
from parity import BOUNDS, check_parity

from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.pipeline import BatchPlan

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_precision():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("device", ["cuda", "ipu-sim:cuda"])
@pytest.mark.parametrize("row", [BOUNDS[0], BOUNDS[2], BOUNDS[4]], ids=["sgd", "adamw", "lamb"])
def test_ten_updates_are_the_same_as_on_the_cpu(device, row):
    check_parity(device, *row)


@pytest.mark.parametrize("device", ["cuda", "ipu-sim:cuda"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixing_learns_the_same_as_mixing_by_hand(device, kind):
    check_mixing_parity(KINDS[kind], devices=(device,))


def test_the_gpu_copies_from_page_locked_buffers_of_workers(tmp_path):
    """Checks that buffers are page-locked, and that a run learns the same as without workers, bit for bit."""
    write_image_folder(tmp_path, count=20)
    states = []
    for workers in (0, 2):
        config = tiny_config(
            data={"source": "imagefolder", "path": str(tmp_path), "num_workers": workers, "num_train": None},
            model={"num_classes": 2},
            pipeline={"global_batch_size": 16, "micro_batch_size": 8, "native_micro_batch_size": 8},
            precision={"compute": "float32", "torch_compile": "never"},
        )
        backend = backend_for(config, "cuda")
        source, positions = open_source(config.data, config.model, "train"), BatchPlan.of(config).share(0, 1)
        for batch in TrainingLoader(source, config, positions, start_step=0, total_steps=6):
            assert batch.images.is_pinned() is (workers > 0)
            backend.train_step(batch, 0.02)
        assert not batch.images.is_pinned()  # unlocked after the last step
        states.append(backend.state_dict()["model"])
    assert equal_states(*states)


@pytest.mark.parametrize("compiled", ["always", "never"])
def test_bfloat16_learns_nearly_the_same_as_float32(compiled):
    losses = {}
    for compute in ("bfloat16", "float32"):
        config = tiny_config(precision={"compute": compute, "torch_compile": compiled})
        backend = backend_for(config, "cuda")
        backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
        losses[compute] = [backend.train_step(random_batch(config, seed), 0.02).loss for seed in range(6)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)


def test_compiling_changes_only_rounding():
    states = []
    for compiled in ("always", "never"):
        config = tiny_config(precision={"compute": "float32", "torch_compile": compiled})
        backend = backend_for(config, "cuda")
        backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
        for seed in range(3):
            backend.train_step(random_batch(config, seed), 0.02)
        assert backend.predict(random_images(45)).shape == (45, 10)
        states.append(backend.state_dict()["model"])
    assert worst(relative_errors(*states)) < 1e-4


def test_memory_that_runs_out_makes_micro_batches_smaller():
    config = tiny_config(
        model={"variant": "vit_small_patch16", "image_size": 224, "num_classes": 10},
        pipeline={"global_batch_size": 4096, "micro_batch_size": 8, "layers_per_ipu": [12]},
        precision={"torch_compile": "never"},
    )
    torch.cuda.set_per_process_memory_fraction(8e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        backend = backend_for(config, "cuda")
        backend.micro_batch_size = 4096
        loss = backend.train_step(random_batch(config), 0.01).loss
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert backend.micro_batch_size < 4096
    assert loss == pytest.approx(2.3026, abs=0.2)  # near ln 10


@pytest.mark.parametrize("device", ["cuda", "ipu-sim:cuda"])
def test_training_continues_from_a_loaded_state(device):
    config = tiny_config(model={"dropout": 0.3}, precision={"compute": "float32", "torch_compile": "never"})
    backend = backend_for(config, device)
    backend.train_step(random_batch(config), 0.01)
    state = backend.state_dict()
    backend.train_step(random_batch(config, 1), 0.01)
    fresh = backend_for(config, device)
    fresh.load_state_dict(state)
    fresh.train_step(random_batch(config, 1), 0.01)
    assert equal_states(fresh.state_dict()["rng"], backend.state_dict()["rng"])
    assert worst(relative_errors(fresh.state_dict()["model"], backend.state_dict()["model"])) < 1e-5


@pytest.mark.parametrize("device", ["auto", "ipu-sim:cuda"])
def test_a_run_records_its_device_and_number_format(monkeypatch, capsys, tmp_path, device):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, precision={"compute": "auto"})
    code, out, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["device"] == ("cuda" if device == "auto" else device)
    environment = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())
    assert environment["compute"] == ("bfloat16" if device == "auto" else "float16")
    assert torch.cuda.get_device_name() in environment["hardware"]

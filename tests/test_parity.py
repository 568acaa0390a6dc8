"""The same config learns the same on every backend, and a wrong mean, order or step count is noticed.

Parity is measured per tensor, ||a - b|| / ||b||, after ten updates: four stages, two replicas, accumulation 8, two
device iterations. The reference is one plain PyTorch loop over each whole global batch.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import pytest
import torch
from helpers import backend_for, random_batch, random_images, relative_errors, tiny_config, with_random_head, worst
from torch import Tensor

from vit_ipu.backends import HostBatch, open_backend, resolve_device
from vit_ipu.config import Config
from vit_ipu.data.images.transforms import Normalize
from vit_ipu.losses import classification_loss
from vit_ipu.model import ViT
from vit_ipu.optim import LAMB, learning_rate, optimizer_groups

UPDATES, ITERATIONS = 10, 2
IMAGES = random_images(37, seed=5)
PIPELINE = {
    "global_batch_size": 64,
    "micro_batch_size": 4,
    "replication_factor": 2,
    "device_iterations": ITERATIONS,
    "layers_per_ipu": [1, 1, 1, 1],
}
BOUNDS = [
    ("sgd", "float32", {"momentum": 0.9, "nesterov": True}, 1e-5),
    ("sgd", "float32", {"gradient_reduction": "sum", "learning_rate": 0.002}, 1e-5),
    ("adamw", "float64", {}, 1e-9),
    ("adam", "float64", {}, 1e-9),
    ("lamb", "float64", {"exempt_max_weight_norm": 0.0}, 1e-9),
    # torch clips by c / (norm + 1e-6), PopART by c / max(c, norm).
    ("adamw", "float64", {"max_grad_norm": 1.0}, 1e-6),
    # Adam's normalisation turns rounding in small gradients into steps of the size of the learning rate.
    ("adamw", "float32", {}, 2e-3),
    ("lamb", "float32", {"exempt_max_weight_norm": 0.0}, 2e-3),
]
IDS = ["-".join([optimizer, compute, *changes]) for optimizer, compute, changes, _ in BOUNDS]
HARDWARE_BOUND = 1e-2
"""On IPUs, in float32: their GELU alone is 6.4e-5 off. A guess until somebody has measured it; no IPU was here."""


def config_for(optimizer: str, compute: str, changes: Dict[str, object]) -> Config:
    rate = {"sgd": 0.05}.get(optimizer, 2e-3)
    optim = {
        "optimizer": optimizer,
        "learning_rate": rate,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "warmup_updates": 2,
        "warmup_start": 0.5,
        **changes,
    }
    return tiny_config(pipeline=PIPELINE, precision={"compute": compute}, optim=optim, run={"updates": UPDATES})


def batches_of(config: Config) -> List[HostBatch]:
    return [random_batch(config, seed) for seed in range(UPDATES // ITERATIONS)]


Trained = Tuple[Dict[str, Tensor], Tensor]
"""Weights, and the logits of some images in their order."""


def train_on(device: str, config: Config, start: Dict[str, Tensor], batches: List[HostBatch]) -> Trained:
    with open_backend(config, resolve_device(device)) as backend:
        backend.load_state_dict({"model": start})
        for step, batch in enumerate(batches):
            backend.train_step(batch, learning_rate(step * ITERATIONS, UPDATES, config.optim))
        return backend.state_dict()["model"], backend.predict(IMAGES)


def train_plainly(config: Config, start: Dict[str, Tensor], batches: List[HostBatch]) -> Trained:
    """No accumulation, no replicas, no device iterations: one loss over each global batch."""
    dtype = getattr(torch, config.precision.compute)
    model, normalize = ViT(config.model).to(dtype), Normalize(config.data).to(dtype)
    model.load_state_dict(start)
    groups = optimizer_groups(model, config.optim)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "lamb": LAMB}
    extra = {"momentum": 0.9, "nesterov": config.optim.nesterov} if config.optim.optimizer == "sgd" else {}
    optimizer = kind[config.optim.optimizer](groups, lr=1.0, **extra)
    size, factor = config.pipeline.global_batch_size, 16 if config.optim.gradient_reduction == "sum" else 1
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step * ITERATIONS, UPDATES, config.optim)
        for images, labels in zip(batch.images.split(size), batch.labels.split(size)):
            optimizer.zero_grad()
            (classification_loss(model(normalize(images)), labels, config.optim.label_smoothing) * factor).backward()
            if config.optim.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
            optimizer.step()
    with torch.no_grad():
        return model.state_dict(), model.eval()(normalize(IMAGES)).float()


def start_of(config: Config) -> Dict[str, Tensor]:
    return with_random_head(backend_for(config, "cpu").state_dict()["model"])


def check_parity(device: str, optimizer: str, compute: str, changes: Dict[str, object], bound: float) -> None:
    """Asserts that ten updates on the CPU, on `device` and by the plain loop give the same weights and logits."""
    config = config_for(optimizer, compute, changes)
    start, batches = start_of(config), batches_of(config)
    trained = {
        "plain": train_plainly(config, start, batches),
        "native": train_on("cpu", config, start, batches),
        device: train_on(device, config, start, batches),
    }
    leave_out = compute == "float32" and optimizer != "sgd"
    for a, b in (("native", "plain"), (device, "plain"), (device, "native")):
        errors = relative_errors(trained[a][0], trained[b][0], leave_out_key_bias=leave_out)
        assert worst(errors) <= bound, (a, b, max(errors, key=errors.get))
        torch.testing.assert_close(trained[a][1], trained[b][1], rtol=10 * bound, atol=max(10 * bound, 1e-6))
    assert worst(relative_errors(start, trained["plain"][0])) > max(100 * bound, 0.1)  # it has learnt something


@pytest.mark.parametrize(("optimizer", "compute", "changes", "bound"), BOUNDS, ids=IDS)
def test_ten_updates_are_the_same_on_every_backend(optimizer, compute, changes, bound):
    check_parity("ipu-sim", optimizer, compute, changes, bound)


IN_FLOAT32 = [row for row in BOUNDS if row[1] == "float32"]


@pytest.mark.ipus(8)
@pytest.mark.parametrize("row", IN_FLOAT32, ids=[row[0] for row in IN_FLOAT32])
def test_ten_updates_are_the_same_on_hardware(row):
    check_parity("ipu", *row[:3], HARDWARE_BOUND)


# ------------------------------------------------------ three mutations, each of which must be noticed


def sum_for_mean(monkeypatch):
    import vit_ipu.backends.ipu.executor as ipu
    from vit_ipu.simulator import ReductionType

    original = ipu.training_options

    def summing(config, **arguments):
        options = original(config, **arguments)
        options.Training.accumulationAndReplicationReductionType(ReductionType.Sum)
        return options

    monkeypatch.setattr(ipu, "training_options", summing)


def swapped_replica_order(monkeypatch):
    from vit_ipu.simulator.execution import program

    original = program.micro_batch_of
    monkeypatch.setattr(program, "micro_batch_of", lambda tensor, index, count: original(tensor, index ^ 1, count))


def one_update_fewer(monkeypatch):
    from vit_ipu.simulator.updates.updater import Updater

    original, calls = Updater.step, []

    def step(self, gradients):
        calls.append(1)
        if len(calls) != UPDATES:
            original(self, gradients)

    monkeypatch.setattr(Updater, "step", step)


@pytest.mark.parametrize("mutate", [sum_for_mean, swapped_replica_order, one_update_fewer])
def test_a_mutation_makes_the_parity_fail(monkeypatch, mutate):
    check_parity("ipu-sim", *BOUNDS[0])
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check_parity("ipu-sim", *BOUNDS[0])


def test_losses_of_each_update_are_reported_alike():
    config = config_for(*BOUNDS[0][:3])
    batch, results = random_batch(config), []
    start = start_of(config)
    for device in ("cpu", "ipu-sim"):
        backend = backend_for(config, device)
        backend.load_state_dict({"model": start})
        results.append(backend.train_step(batch, 0.05))
    cpu, simulated = results
    assert len(cpu.losses) == ITERATIONS
    assert cpu.losses == pytest.approx(simulated.losses, rel=1e-5)
    assert cpu.loss == pytest.approx(sum(cpu.losses) / ITERATIONS)
    assert cpu.num_samples == simulated.num_samples == 128

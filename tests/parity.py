"""Ten updates on a backend, compared with ten updates on the CPU and in a plain PyTorch loop.

Parity is measured per tensor as ||a - b|| / ||b||, with four stages, two replicas, accumulation 8 and two device
iterations. The reference is a plain PyTorch loop with one loss over each global batch.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import torch
from helpers import backend_for, random_batch, random_images, relative_errors, tiny_config, with_random_head, worst
from torch import Tensor

from vit_ipu.backends.build import open_backend, resolve_device
from vit_ipu.backends.contract import HostBatch
from vit_ipu.config import Config
from vit_ipu.losses import classification_loss
from vit_ipu.model import ViT
from vit_ipu.optim import LAMB, learning_rate, optimizer_groups
from vit_ipu.step import Normalize

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
"""Weights, and the logits of IMAGES in order."""


def train_on(device: str, config: Config, start: Dict[str, Tensor], batches: List[HostBatch]) -> Trained:
    with open_backend(config, resolve_device(device)) as backend:
        backend.load_state_dict({"model": start})
        for step, batch in enumerate(batches):
            backend.train_step(batch, learning_rate(step * ITERATIONS, UPDATES, config.optim))
        return backend.state_dict()["model"], backend.predict(IMAGES)


def train_plainly(config: Config, start: Dict[str, Tensor], batches: List[HostBatch]) -> Trained:
    """Trains with one loss over each global batch, without accumulation, replicas or device iterations."""
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
    assert worst(relative_errors(start, trained["plain"][0])) > max(100 * bound, 0.1)  # training changed the weights

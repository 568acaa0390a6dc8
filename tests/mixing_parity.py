"""Mixup and cutmix by hand, one micro-batch after the other, with soft targets: the reference for every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import random_batch, relative_errors, tiny_config, worst
from parity import ITERATIONS, PIPELINE, UPDATES, start_of, train_on

from vit_ipu.model import ViT
from vit_ipu.optim import learning_rate, optimizer_groups
from vit_ipu.step import Normalize

MIXUP, CUTMIX = {"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}


KINDS = {
    "mixup": MIXUP,
    "cutmix": CUTMIX,
    "both": {**MIXUP, **CUTMIX},
    "graphcore": {"mixup_alpha": 0.5, "mixing_draw": "update"},
    "sometimes": {**MIXUP, **CUTMIX, "mixing_probability": 0.5},
}


SIZE = PIPELINE["micro_batch_size"]


def mixing_config(data, **sections):
    optim = {"optimizer": "sgd", "learning_rate": 0.05, "nesterov": True, **sections.pop("optim", {})}
    pipeline = {**PIPELINE, **sections.pop("pipeline", {})}
    return tiny_config(data=data, pipeline=pipeline, optim=optim, run={"updates": UPDATES}, **sections)


def mixed_by_hand(images, labels, row, num_classes):
    """Returns the mixed images and the soft targets of one micro-batch."""
    own_label, own_inside, left, top, right, bottom = row.tolist()
    left, top, right, bottom = (int(bound) for bound in (left, top, right, bottom))
    mixed, targets = images.clone(), torch.empty(len(labels), num_classes, dtype=images.dtype)
    hard = F.one_hot(labels, num_classes).to(images.dtype)
    for index in range(len(images)):
        partner = images[index - 1, :, top:bottom, left:right]
        mixed[index, :, top:bottom, left:right] *= own_inside
        mixed[index, :, top:bottom, left:right] += (1 - own_inside) * partner
        targets[index] = own_label * hard[index] + (1 - own_label) * hard[index - 1]
    return mixed, targets


def train_by_hand(config, start, batches):
    """Trains with one soft-target loss over each global batch, whose micro-batches are mixed one by one."""
    model, normalize = ViT(config.model), Normalize(config.data)
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(optimizer_groups(model, config.optim), lr=1.0, momentum=0.9, nesterov=True)
    per_update = config.pipeline.global_batch_size
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step * ITERATIONS, UPDATES, config.optim)
        parts = zip(normalize(batch.images).split(SIZE), batch.labels.split(SIZE), batch.mixing)
        mixed, targets = (torch.cat(x) for x in zip(*(mixed_by_hand(*part, 10) for part in parts)))
        for images, soft in zip(mixed.split(per_update), targets.split(per_update)):
            optimizer.zero_grad()
            F.cross_entropy(model(images), soft, label_smoothing=config.optim.label_smoothing).backward()
            optimizer.step()
    return model.state_dict()


def check_parity(data, *, devices=("cpu", "ipu-sim"), label_smoothing=0.1):
    """Asserts that ten updates by hand, merged, unmerged and over two replicas give the same weights."""
    config = mixing_config(data, optim={"label_smoothing": label_smoothing})
    assert config.pipeline.gradient_accumulation == 8
    start, batches = start_of(config), [random_batch(config, seed) for seed in range(UPDATES // ITERATIONS)]
    expected = train_by_hand(config, start, batches)
    for device in devices:
        for size in (None, SIZE) if device == "cpu" else (None,):  # None: merged as far as memory allows
            sized = mixing_config(
                data, optim={"label_smoothing": label_smoothing}, pipeline={"native_micro_batch_size": size}
            )
            errors = relative_errors(train_on(device, sized, start, batches)[0], expected)
            assert worst(errors) <= 1e-5, (device, size, max(errors, key=errors.get))
    assert worst(relative_errors(start, expected)) > 0.1  # training changed the weights

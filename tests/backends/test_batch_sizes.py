"""A host step takes exactly its number of samples, on every backend: another number is refused before any update."""

from __future__ import annotations

import pytest
from helpers import backend_for, equal_states, random_batch, tiny_config

from vit_ipu.backends.contract import HostBatch
from vit_ipu.errors import UserError


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize(("images", "labels"), [(96, 96), (32, 32), (0, 0), (64, 60), (60, 64)])
def test_another_number_of_samples_is_refused(device, images, labels):
    config = tiny_config(pipeline={"device_iterations": 2})
    backend = backend_for(config, device)
    before = backend.state_dict()["model"]
    given = random_batch(tiny_config(pipeline={"device_iterations": 4}))
    expected = (
        f"^the batch of a host step has {images} images and {labels} labels, but pipeline.global_batch_size x "
        "device_iterations is 64 in this process: give 64 of each$"
    )
    with pytest.raises(UserError, match=expected):
        backend.train_step(HostBatch(given.images[:images], given.labels[:labels]), 0.05)
    assert equal_states(backend.state_dict()["model"], before)
    assert backend.train_step(random_batch(config), 0.05).num_samples == 64
    backend.close()

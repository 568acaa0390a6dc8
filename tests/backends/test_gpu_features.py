"""Layer decay, frozen and averaged weights, class weights and the binary loss on a CUDA device, as on the CPU."""

from __future__ import annotations

import pytest
import torch
from helpers import random_batch, relative_errors, tiny_config, with_random_head, worst
from parity import IMAGES

from vit_ipu.backends.build import open_backend, resolve_device
from vit_ipu.units import unit_of

pytestmark = pytest.mark.gpu
FEATURES = {
    "layer decay": {"optim": {"layer_decay": 0.6}},
    "frozen": {"optim": {"freeze": ["embed", "blocks.0-1"]}},
    "average": {"optim": {"ema_decay": 0.8}},
    "average of frozen": {"optim": {"ema_decay": 0.8, "freeze": ["embed", "blocks", "norm"]}},
    "class weights": {"optim": {"class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "label_smoothing": 0.1}},
    "binary loss": {"data": {"mixup_alpha": 0.4}, "optim": {"loss": "bce", "bce_target_threshold": 0.2}},
    "clipped": {"optim": {"optimizer": "adamw", "max_grad_norm": 0.5, "layer_decay": 0.8}},
}
UPDATES = 6


def trained(device, name, compute, compiled="never"):
    """Returns the state after the updates, and the logits of IMAGES."""
    feature = FEATURES[name]
    config = tiny_config(
        data=feature.get("data", {}),
        pipeline={"global_batch_size": 64, "micro_batch_size": 4, "native_micro_batch_size": 16},
        precision={"compute": compute, "torch_compile": compiled},
        optim={"learning_rate": 2e-3, "weight_decay": 0.05, **feature["optim"]},
        run={"updates": UPDATES},
    )
    with open_backend(config, resolve_device(device), class_weights=config.optim.class_weights) as backend:
        torch.manual_seed(7)
        backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
        for seed in range(UPDATES):
            backend.train_step(random_batch(config, seed), 2e-3)
        return dict(backend.state_dict(), logits=backend.predict(IMAGES))


@pytest.mark.parametrize("device", ["cuda", "ipu-sim:cuda"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_learns_the_same_as_on_the_cpu(device, name):
    wanted, found = trained("cpu", name, "float64"), trained(device, name, "float64")
    for part in ("model", "unaveraged"):
        if part in wanted:
            assert worst(relative_errors(found[part], wanted[part])) < 1e-6, part
    torch.testing.assert_close(found["logits"].cpu(), wanted["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_learns_the_same_in_bfloat16_compiled_and_from_graphs(name):
    """The error of bfloat16 to float64 is that of plain bfloat16 on the CPU; frozen weights keep their bits."""
    exact = trained("cpu", name, "float64")
    plain, fast = trained("cpu", name, "bfloat16"), trained("cuda", name, "bfloat16", "always")
    assert root_mean_square(fast["model"], exact["model"]) < 1.5 * root_mean_square(plain["model"], exact["model"])
    if "frozen" in name:
        frozen = [key for key in fast["model"] if unit_of(key) in ("embed", "blocks.0", "blocks.1")]
        assert frozen
        for key in frozen:
            assert torch.equal(fast["model"][key].double().cpu(), exact["model"][key]), key


def root_mean_square(found, wanted):
    """Returns the root of the mean square of all tensors' relative errors."""
    errors = [float(error) for error in relative_errors(found, wanted, leave_out_key_bias=True).values()]
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5

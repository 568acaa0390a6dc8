"""The native backend: accumulation, merged micro-batches, memory, state."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    backend_for,
    equal_states,
    random_batch,
    random_images,
    relative_errors,
    tiny_config,
    with_random_head,
    worst,
)

from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.backends.native.micro_batches import activation_bytes, fitting_micro_batch_size, merged_sizes
from vit_ipu.config import ModelConfig
from vit_ipu.errors import RunFailed


def trained(config, updates=2, start=None):
    backend = backend_for(config, "cpu")
    if start is None:
        start = with_random_head(backend.state_dict()["model"])
    backend.load_state_dict({"model": start})
    for seed in range(updates):
        backend.train_step(random_batch(config, seed), 0.05)
    return backend


def test_merging_micro_batches_changes_only_rounding():
    states = []
    for size in (4, 16, 32):
        config = tiny_config(pipeline={"native_micro_batch_size": size})
        states.append(trained(config).state_dict()["model"])
    assert worst(relative_errors(states[1], states[0])) < 1e-5
    assert worst(relative_errors(states[2], states[0])) < 1e-5


def test_summed_gradients_are_the_mean_times_accumulation_and_replicas():
    pipeline = {"global_batch_size": 32, "micro_batch_size": 2, "replication_factor": 2}
    mean = tiny_config(pipeline=pipeline, optim={"learning_rate": 0.8, "momentum": 0.0})
    total = tiny_config(pipeline=pipeline, optim={"learning_rate": 0.1, "momentum": 0.0, "gradient_reduction": "sum"})
    results = []
    for config, rate in ((mean, 0.08), (total, 0.01)):  # 8 micro-batches on each of 2 replicas: 16, and the rate / 8
        backend = backend_for(config, "cpu")
        backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
        backend.train_step(random_batch(config), rate)
        results.append(
            (backend.state_dict()["model"], with_random_head(backend_for(config, "cpu").state_dict()["model"]))
        )
    (a, start), (b, _) = results
    moved_a = {name: a[name] - start[name] for name in a}
    moved_b = {name: (b[name] - start[name]) / 2 for name in b}
    assert worst(relative_errors(moved_a, moved_b)) < 1e-3


def test_gradients_are_clipped_by_their_global_norm():
    config = tiny_config(optim={"max_grad_norm": 1e-3, "momentum": 0.0})
    backend = trained(config, updates=0)
    before = backend.state_dict()["model"]
    backend.train_step(random_batch(config), 1.0)
    after = backend.state_dict()["model"]
    moved = torch.stack([(after[name] - before[name]).norm() for name in after]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_the_micro_batch_size_is_chosen_by_memory():
    assert fitting_micro_batch_size([4, 8, 16, 32], 100, 1700.0) == 16
    assert fitting_micro_batch_size([4, 8], 100, 1.0) == 4
    base = ModelConfig(variant="vit_base_patch16")
    assert 100e6 < activation_bytes(base) < 400e6  # of one image at 224 px in float32


def test_sizes_are_multiples_of_the_micro_batch_that_divide_the_global_batch():
    config = tiny_config(pipeline={"global_batch_size": 48})
    backend = NativeBackend(config, torch.device("cpu"))
    assert merged_sizes(config.pipeline) == [4, 8, 12, 16, 24, 48]
    assert backend.micro_batch_size == 48


def out_of_memory_above(backend, limit, calls):
    def limited(original):
        def call(*inputs):
            calls.append(len(inputs[0]))
            if len(inputs[0]) > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return original(*inputs)

        return call

    for part, name in ((backend._passes, "loss_of"), (backend._predictor, "logits_of")):
        setattr(part, name, limited(getattr(part, name)))


def test_memory_that_runs_out_makes_micro_batches_smaller_and_learns_the_same(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    config = tiny_config(model={"dropout": 0.2})
    small = tiny_config(model={"dropout": 0.2}, pipeline={"native_micro_batch_size": 8})
    calls, states = [], []
    for made in (config, small):
        backend = trained(made, updates=0)
        if made is config:
            out_of_memory_above(backend, 8, calls)
        backend.train_step(random_batch(made), 0.05)
        states.append(backend.state_dict()["model"])
    assert calls == [32, 16, 8, 8, 8, 8]
    assert equal_states(*states)


def test_memory_that_runs_out_in_a_prediction_makes_micro_batches_smaller(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    calls, images = [], random_images(20)
    backend = trained(tiny_config())
    expected = backend.predict(images)
    out_of_memory_above(backend, 8, calls)
    torch.testing.assert_close(backend.predict(images), expected)
    assert calls == [20, 20, 16, 8, 8, 4]  # of 64, 32, 16 and 8 at a time
    assert backend.micro_batch_size == 32  # of training


NO_SMALLER_SIZE = [
    (16, 8, "train", "16 images: remove pipeline.native_micro_batch_size, so that smaller micro-batches are tried"),
    (None, 3, "train", "4 images: lower pipeline.micro_batch_size, or use --device cpu"),
    (16, 8, "predict", "16 images at a time: remove pipeline.native_micro_batch_size, so that fewer images are tried"),
    (None, 0, "predict", "1 image at a time: use --device cpu"),
]


@pytest.mark.parametrize(("chosen", "limit", "work", "message"), NO_SMALLER_SIZE)
def test_memory_that_runs_out_at_the_smallest_size_fails_the_run(monkeypatch, chosen, limit, work, message):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    config = tiny_config(pipeline={"native_micro_batch_size": chosen})
    backend = trained(config, updates=0)
    out_of_memory_above(backend, limit, [])
    what = "with micro-batches of" if work == "train" else "in predicting"
    with pytest.raises(RunFailed, match=f"^cpu: out of memory {what} {message}$"):
        backend.train_step(random_batch(config), 0.05) if work == "train" else backend.predict(random_images(16))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lamb"])
def test_training_continues_bit_for_bit_from_a_loaded_state(optimizer):
    config = tiny_config(optim={"optimizer": optimizer}, model={"dropout": 0.3, "drop_path": 0.2})
    backend = trained(config, updates=2)
    state = backend.state_dict()
    other = backend_for(config, "cpu")
    torch.manual_seed(999)
    results = []
    for b in (backend, other):
        b.load_state_dict(state)
        b.train_step(random_batch(config, 7), 0.01)
        results.append(b.state_dict())
    assert equal_states(*results)


def test_predictions_do_not_depend_on_how_many_there_are():
    backend = trained(tiny_config())
    images = random_images(45)
    whole = backend.predict(images)
    assert (whole.shape, whole.dtype) == ((45, 10), torch.float32)
    torch.testing.assert_close(torch.cat([backend.predict(images[:7]), backend.predict(images[7:])]), whole)
    assert backend.predict(images[:0]).shape == (0, 10)


def test_bfloat16_is_near_float32():
    images = random_images(8)
    full = trained(tiny_config()).predict(images)
    low = trained(tiny_config(precision={"compute": "bfloat16"})).predict(images)
    assert 0 < (full - low).abs().max() < 0.3


def test_images_may_be_transferred_as_floats():
    from vit_ipu.backends.contract import HostBatch
    from vit_ipu.data.loading.loader import stack_images

    config = tiny_config(data={"transfer": "float32"})
    batch = random_batch(config)
    floats = HostBatch(stack_images(list(batch.images.numpy()), config.data), batch.labels)
    states = []
    for made, b in ((config, floats), (tiny_config(), batch)):
        backend = trained(made, updates=0)
        backend.train_step(b, 0.05)
        states.append(backend.state_dict()["model"])
    assert worst(relative_errors(*states)) < 1e-5

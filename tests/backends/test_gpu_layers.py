"""The fast layers and passes of a GPU give what the plain ones give."""

from __future__ import annotations

import time

import pytest
import torch
from helpers import backend_for, equal_states, random_batch, relative_errors, tiny_config, with_random_head

from vit_ipu.backends.native import layers
from vit_ipu.backends.native.working_copy import WorkingCopy
from vit_ipu.config import ModelConfig
from vit_ipu.model import Layers, ViT

pytestmark = pytest.mark.gpu
SMALL = {"variant": "vit_tiny_patch16", "depth": 2, "num_classes": 10}
# name: changes of the model, number of images
SHAPES = {
    "197 tokens": ({}, 5),
    "65 tokens": ({"image_size": 112, "patch_size": 14}, 3),
    "256 tokens at most, 50": ({"patch_size": 32}, 3),
    "577 tokens, for which the attention kernels are too small": ({"image_size": 384}, 2),
    "heads of 32 channels": ({"num_heads": 6}, 2),
    "heads of 48 channels, which the kernels do not take": ({"num_heads": 4}, 2),
    "tanh": ({"gelu": "tanh"}, 2),
}


def results_of(config, dtype, made, state, images, gradient):
    """Returns the outputs, and the gradients by name, of a model with these layers."""
    model = ViT(config, layers=made).to("cuda", dtype)
    model.load_state_dict(state)
    outputs = model(images.to(dtype))
    outputs.backward(gradient.to(dtype))
    return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_as_near_to_float32s_as_those_of_the_plain_layers(shape):
    changes, count = SHAPES[shape]
    config = ModelConfig(**dict(SMALL, **changes))
    torch.manual_seed(0)
    state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in ViT(config).state_dict().items()}
    images = torch.randn(count, 3, config.image_size, config.image_size, device="cuda")
    gradient = torch.randn(count, 10, device="cuda")
    exact = results_of(config, torch.float64, Layers(), state, images, gradient)
    plain = results_of(config, torch.bfloat16, Layers(), state, images, gradient)
    fast_layers = Layers(layers.MatrixPatchEmbed, layers.PackedAttention, layers.RecomputingMLP, layers.ClassTokenBlock)
    fast = results_of(config, torch.bfloat16, fast_layers, state, images, gradient)
    error = lambda found, name: (found.double() - name).norm() / name.norm()  # noqa: E731
    assert error(fast[0], exact[0]) < 1.5 * error(plain[0], exact[0]) + 1e-3
    for name, wanted in exact[1].items():
        if wanted.norm() > 1e-8:
            assert error(fast[1][name], wanted) < 1.5 * error(plain[1][name], wanted) + 2e-3, name


def test_the_fast_layers_are_chosen_for_bfloat16_only():
    model = {"variant": "vit_tiny_patch16", "image_size": 224, "num_classes": 10}
    fast, exact = (
        layers.layers_for(
            tiny_config(model=model, pipeline={"layers_per_ipu": [12]}, precision={"compute": compute}),
            torch.device("cuda"),
        )
        for compute in ("bfloat16", "float32")
    )
    assert fast.attention is layers.PackedAttention
    assert exact == Layers(layers.MatrixPatchEmbed, last_block=layers.ClassTokenBlock)


MIXED = {
    "model": {"variant": "vit_tiny_patch16", "image_size": 112, "num_classes": 10, "depth": 4},
    "data": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "pipeline": {"global_batch_size": 64, "micro_batch_size": 8},
}


def trained(size, compiled="always", *, graph=True, updates=10, attention="auto", **precision):
    """Returns the weights after some updates, the losses, and the backend."""
    pipeline = dict(MIXED["pipeline"], native_micro_batch_size=size)
    values = {"compute": "bfloat16", "torch_compile": compiled, **precision}
    model = dict(MIXED["model"], attention=attention)
    config = tiny_config(**dict(MIXED, model=model, pipeline=pipeline, precision=values))
    backend = backend_for(config, "cuda")
    if not graph:
        backend._passes._graph = None
    backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
    losses = [backend.train_step(random_batch(config, seed), 0.02).loss for seed in range(updates)]
    return backend.state_dict()["model"], losses, backend


@pytest.fixture(scope="module")
def reference():
    """Ten updates in one pass each, compiled and by graphs; and in float32."""
    return trained(64), trained(64, compute="float32", compiled="never")


@pytest.fixture(scope="module")
def rounding(reference):
    """Returns how far bfloat16 is from float32 after ten updates without kernels of ours and without compiling."""
    plain, _, _ = trained(64, "never", attention="explicit")
    return errors_of(plain, reference[1][0])


def errors_of(found, reference):
    """Returns the root of the mean square of all tensors' relative errors: of one small tensor, chance moves it."""
    errors = [float(error) for error in relative_errors(found, reference, leave_out_key_bias=True).values()]
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


@pytest.mark.parametrize(
    ("size", "compiled", "graph"),
    [(64, "never", False), (64, "always", False), (16, "always", True), (8, "always", True), (16, "never", False)],
    ids=["eager", "no graph", "four passes", "eight passes", "four eager passes"],
)
def test_ten_updates_are_the_same_but_for_rounding(reference, rounding, size, compiled, graph):
    (weights, losses, _), (exact, exact_losses, _) = reference
    found, found_losses, _ = trained(size, compiled, graph=graph)
    assert errors_of(weights, exact) < 1.5 * rounding
    assert errors_of(found, exact) < 1.5 * rounding
    assert found_losses == pytest.approx(losses, rel=0.01)
    assert losses == pytest.approx(exact_losses, rel=0.02)


def test_a_replayed_graph_gives_the_bits_of_its_kernels_launched_one_by_one(reference):
    again, losses, _ = trained(64, graph=False)
    assert losses == reference[0][1]
    assert equal_states(again, reference[0][0])
    recordings = reference[0][2]._passes._graph._recordings
    assert [recording is not None for recording in recordings.values()] == [True]


def test_dropout_draws_the_same_numbers_in_a_replayed_graph_and_in_a_resumed_run():
    model = dict(MIXED["model"], dropout=0.1, drop_path=0.2)
    config = tiny_config(model=model, precision={"compute": "bfloat16"})
    whole, resumed = backend_for(config, "cuda"), backend_for(config, "cuda")
    losses = [whole.train_step(random_batch(config, seed), 0.02).loss for seed in range(3)]
    state = whole.state_dict()
    resumed.load_state_dict(state)
    following = [[b.train_step(random_batch(config, seed), 0.02).loss for seed in (3, 4)] for b in (whole, resumed)]
    assert following[0] == pytest.approx(following[1], rel=1e-3)
    assert len(set(losses)) == 3


def test_masters_keep_updates_that_bfloat16_would_lose():
    config = tiny_config(precision={"compute": "bfloat16", "torch_compile": "never"}, optim={"momentum": 0.0})
    backend = backend_for(config, "cuda")
    start = with_random_head(backend.state_dict()["model"])
    backend.load_state_dict({"model": start})
    for _ in range(20):
        backend.train_step(random_batch(config), 1e-5)
    moved = backend.state_dict()["model"]["head.weight"] - start["head.weight"]
    assert 0 < moved.abs().max() < start["head.weight"].abs().max() / 512
    copy = backend._copy
    assert isinstance(copy, WorkingCopy)
    for master, rounded in zip(backend._model.parameters(), copy.model.parameters()):
        assert torch.equal(master.to(torch.bfloat16), rounded)


def test_a_result_is_that_of_its_own_step_however_late_it_is_read():
    config = tiny_config(precision={"compute": "bfloat16"})
    late, early = backend_for(config, "cuda"), backend_for(config, "cuda")
    start = time.monotonic()
    results = [late.train_step(random_batch(config, seed), 0.02) for seed in range(5)]
    assert not results[0].is_known
    results[-1].wait()
    assert results[-1].is_done
    assert not results[-1].is_known
    assert [result.loss for result in results] == [
        early.train_step(random_batch(config, seed), 0.02).loss for seed in range(5)
    ]
    assert results[0].is_known
    ends = [result.ended_at for result in results]
    assert ends == sorted(ends)
    assert start < ends[0] < ends[-1] < time.monotonic()


def test_a_step_ends_when_the_gpu_has_made_it_not_when_the_host_looks():
    backend = backend_for(tiny_config(precision={"compute": "bfloat16"}), "cuda")
    batches = [random_batch(tiny_config(), seed) for seed in range(3)]
    backend.train_step(batches[0], 0.02).wait()
    before = time.monotonic()
    first = backend.train_step(batches[1], 0.02)
    first.wait()
    seen = time.monotonic()
    time.sleep(0.5)
    second = backend.train_step(batches[2], 0.02)
    assert before < first.ended_at < seen + 0.01
    assert second.ended_at > seen + 0.5


def test_the_memory_of_a_batch_may_be_written_after_its_step_has_returned():
    config = tiny_config(model=MIXED["model"], precision={"compute": "bfloat16"})
    kept, overwritten = backend_for(config, "cuda"), backend_for(config, "cuda")
    shared = random_batch(config)
    shared = type(shared)(*(tensor.pin_memory() for tensor in shared.inputs))
    losses = []
    for seed in range(5):
        batch = random_batch(config, seed)
        for target, source in zip(shared.inputs, batch.inputs):
            target.copy_(source)
        losses.append(overwritten.train_step(shared, 0.02))
        assert kept.train_step(batch, 0.02).num_samples == len(batch)
    for target in shared.inputs:
        target.zero_()
    assert equal_states(kept.state_dict()["model"], overwritten.state_dict()["model"])


def test_the_micro_batch_size_is_measured():
    config = tiny_config(
        model={"variant": "vit_small_patch16", "image_size": 224, "num_classes": 10},
        pipeline={"global_batch_size": 4096, "micro_batch_size": 8, "layers_per_ipu": [12]},
        precision={"torch_compile": "never"},
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0)
    backend = backend_for(config, "cuda")
    backend.train_step(random_batch(config), 0.01).wait()
    size, peak = backend.micro_batch_size, torch.cuda.max_memory_allocated()
    assert size >= 512
    assert peak < 0.95 * total

"""The IPU backend on the simulator: the hand-over of IPUs and weights, and the numbers that it gives."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_for, equal_states, random_batch, random_images, tiny_config, with_random_head
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ipu import simulator
from vit_ipu.backends.build import build_backend, open_backend, resolve_device
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import evaluation_loader
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.runs.checkpoint import Progress
from vit_ipu.simulator import machine
from vit_ipu.train import training_loader

pytestmark = pytest.mark.usefixtures("ipu")


def test_compile_builds_inference_too_and_leaves_training_on_the_ipus(monkeypatch):
    backend = backend_for(tiny_config(), "ipu-sim")
    backend.compile()
    inference, training = backend._inference, backend._training
    assert inference.isCompiled()
    assert training.isCompiled()
    assert training.isAttachedToDevice()
    assert not inference.isAttachedToDevice()
    monkeypatch.setattr(type(inference), "_compile", None, raising=True)  # nothing compiles from here on
    backend.train_step(random_batch(tiny_config()), 0.05)
    assert backend.predict(random_images(5)).shape == (5, 10)
    backend.close()


def test_a_training_step_alone_compiles_no_inference():
    backend = backend_for(tiny_config(), "ipu-sim")
    backend.train_step(random_batch(tiny_config()), 0.05)
    assert backend._inference is None
    backend.close()


def test_evaluation_placed_differently_has_the_same_logits():
    run = {"evaluation_layers_per_ipu": [2, 2], "evaluation_execution": "sharded", "evaluation_micro_batch_size": 3}
    images, logits = random_images(9), []
    for values in ({}, run):
        backend = backend_for(tiny_config(run=values), "ipu-sim")
        backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
        logits.append(backend.predict(images))
        backend.close()
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_normalised_images_travel_in_the_devices_format():
    config = tiny_config(data={"transfer": "float32"}, precision={"compute": "float16"})
    backend = backend_for(config, "ipu-sim")
    assert backend.float_format == torch.float16
    source = open_source(config.data, config.model, "train")
    for loader in (
        training_loader(source, config, backend, Progress(), 1),
        evaluation_loader(source, config, backend),
    ):
        assert next(iter(loader)).images.dtype == torch.float16
    assert next(iter(evaluation_loader(source, config, backend_for(config_on_cpu(config), "cpu")))).images.dtype == (
        torch.float32
    )


def config_on_cpu(config):
    return config.model_copy(update={"precision": config.precision.model_copy(update={"compute": "float32"})})


def test_backends_with_different_numerics_work_side_by_side():
    """Each compiles when it is first called, after the other one was built."""
    config = tiny_config(precision={"compute": "float16", "loss_scale": 1e6})
    images, batch, results = random_images(5), random_batch(config), {}
    pairs = [[build_backend(config, resolve_device("ipu-sim", numerics=mode)) for mode in modes] for modes in PAIRS]
    for modes, backends in zip(PAIRS, pairs):
        for mode, backend in zip(modes, backends):
            backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
            logits = backend.predict(images)
            backend.train_step(batch, 0.05)
            results.setdefault(mode, []).append((logits, backend.state_dict()["model"], backend.num_overflows))
            backend.close()
    assert equal_states(*results["exact"])
    assert equal_states(*results["ipu"])
    assert not equal_states(results["ipu"][0][:2], results["exact"][0][:2])
    assert results["exact"][0][2] is None
    assert results["ipu"][0][2] > 0


PAIRS = [("exact", "ipu"), ("ipu", "exact")]


def test_overflows_are_counted_on_from_a_saved_state():
    config = tiny_config(precision={"compute": "float16", "loss_scale": 1e6})
    device = resolve_device("ipu-sim", numerics="ipu")
    first = build_backend(config, device)
    assert first.num_overflows == 0
    counts = []
    for seed in range(2):
        first.train_step(random_batch(config, seed), 0.05)
        counts.append(first.num_overflows)
        if seed == 0:
            state = first.state_dict()
    first.predict(random_images(3))  # is not training
    assert 0 < counts[0] < counts[1] == first.num_overflows
    assert state["counts"] == {"overflows": counts[0]}
    second = build_backend(config, device)
    second.load_state_dict(state)
    second.train_step(random_batch(config, 1), 0.05)
    assert second.num_overflows == counts[1]


def test_training_and_inference_take_turns_on_the_same_ipus():
    config = tiny_config()
    backend = backend_for(config, "ipu-sim")
    backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
    images, seen = random_images(9), []
    for seed in range(3):
        backend.train_step(random_batch(config, seed), 0.05)
        assert backend._training.isAttachedToDevice()
        seen.append(backend.predict(images))
        assert not backend._training.isAttachedToDevice()
        assert backend._inference.isAttachedToDevice()
        native = backend_for(config, "cpu")
        native.load_state_dict({"model": backend.state_dict()["model"]})
        torch.testing.assert_close(seen[-1], native.predict(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1])
    backend.close()
    assert machine.current.ipus_held == 0


BACKENDS = {}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60))
def test_any_number_of_images_is_predicted_once_and_in_order(count):
    """Covers numbers that do not fill the last call: the call is padded, and the padding is cut off."""
    config = tiny_config(
        pipeline={"global_batch_size": 64, "replication_factor": 2}, run={"evaluation_micro_batch_size": 3}
    )
    if not BACKENDS:
        start = with_random_head(backend_for(config, "cpu").state_dict()["model"])
        for device in ("cpu", "ipu-sim"):
            BACKENDS[device] = backend_for(config, device)
            BACKENDS[device].load_state_dict({"model": start})
    images = random_images(60)[:count]
    logits = BACKENDS["ipu-sim"].predict(images)
    assert logits.shape == (count, 10)
    torch.testing.assert_close(logits, BACKENDS["cpu"].predict(images), rtol=1e-4, atol=1e-4)


def test_evaluation_does_not_disturb_training():
    config = tiny_config(model={"dropout": 0.2})
    states = []
    for evaluates in (False, True):
        backend = backend_for(config, "ipu-sim")
        for seed in range(3):
            backend.train_step(random_batch(config, seed), 0.05)
            if evaluates:
                backend.predict(random_images(5))
        states.append(backend.state_dict())
    assert equal_states(states[0]["model"], states[1]["model"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_training_continues_bit_for_bit_from_a_loaded_state(optimizer):
    config = tiny_config(optim={"optimizer": optimizer}, model={"dropout": 0.3, "drop_path": 0.2})
    backend = backend_for(config, "ipu-sim")
    for seed in range(2):
        backend.train_step(random_batch(config, seed), 0.01)
    state = backend.state_dict()
    backend.train_step(random_batch(config, 7), 0.01)
    fresh = backend_for(config, "ipu-sim")
    fresh.load_state_dict(state)
    fresh.train_step(random_batch(config, 7), 0.01)
    assert equal_states(fresh.state_dict(), backend.state_dict())
    assert state["optimizer"]["ipu_state"]


def test_training_continues_on_another_number_of_ipus():
    """PopART refuses the random state of another number of IPUs, so only the seed continues."""
    sixteen, four = (
        tiny_config(pipeline={"global_batch_size": 128, "replication_factor": replicas}, model={"dropout": 0.3})
        for replicas in (4, 1)
    )
    before = backend_for(sixteen, "ipu-sim")
    before.train_step(random_batch(sixteen), 0.01)
    state = before.state_dict()
    before.close()
    after = backend_for(four, "ipu-sim")
    after.load_state_dict(state)
    after.compile()
    assert after.state_dict()["rng"]["seed"] == state["rng"]["seed"] != four.run.seed
    assert equal_states(after.state_dict()["optimizer"], state["optimizer"])
    after.train_step(random_batch(four, 1), 0.01)
    assert (state["rng"]["ipus"], after.state_dict()["rng"]["ipus"]) == (16, 4)


def test_a_state_without_its_number_of_ipus_is_loaded():
    config = tiny_config(model={"dropout": 0.3})
    backend = backend_for(config, "ipu-sim")
    backend.train_step(random_batch(config), 0.01)
    state = backend.state_dict()
    del state["rng"]["ipus"]
    fresh = backend_for(config, "ipu-sim")
    fresh.load_state_dict(state)
    fresh.compile()
    assert torch.equal(fresh.state_dict()["rng"]["words"], state["rng"]["words"])


def test_inference_gets_the_ipus_if_only_a_compilation_came_between():
    backend = backend_for(tiny_config(), "ipu-sim")
    before = backend.predict(random_images(5))
    backend.compile()
    assert backend._training.isAttachedToDevice()
    assert torch.equal(backend.predict(random_images(5)), before)
    assert not backend._training.isAttachedToDevice()


def test_float16_weights_train_and_are_kept_in_float16():
    config = tiny_config(precision={"compute": "auto", "loss_scale": 128.0})
    backend = backend_for(config, "ipu-sim")
    losses = [backend.train_step(random_batch(config), 0.1).loss for _ in range(8)]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in backend.state_dict()["model"].values()} == {torch.float16}
    assert backend.predict(random_images(3)).dtype == torch.float32


def test_evaluation_does_not_round_float16_training():
    config = tiny_config(precision={"compute": "float16"})
    states = []
    for evaluates in (False, True):
        backend = backend_for(config, "ipu-sim")
        for seed in range(4):
            backend.train_step(random_batch(config, seed), 0.05)
            if evaluates:
                backend.predict(random_images(5))
        states.append(backend.state_dict())
    assert equal_states(states[0]["model"], states[1]["model"])


def test_a_device_error_is_not_hidden_by_closing(monkeypatch):
    def broken(self):
        raise RuntimeError("the second error")

    monkeypatch.setattr("vit_ipu.backends.ipu.executor.IpuBackend.close", broken)
    with pytest.raises(ValueError, match="the first error"), open_backend(tiny_config(), resolve_device("ipu-sim")):
        raise ValueError("the first error")


def test_synthetic_data_is_closed_without_reading_weights_back(monkeypatch):
    backend = backend_for(tiny_config(), "ipu-sim")
    backend.train_step(random_batch(tiny_config()), 0.05)
    backend._config = tiny_config(pipeline={"synthetic_data": True})
    destroyed = []
    monkeypatch.setattr(simulator.PoplarExecutor, "destroy", destroyed.append)  # destroy would read the weights
    backend.close()
    assert destroyed == []


def test_recomputation_and_sharding_change_no_numbers():
    states = []
    changes = [
        {"recompute": recompute, "execution": execution, "layers_per_ipu": layers}
        for recompute in ("auto", "none", "every_block")
        for execution in ("pipelined", "sharded")
        for layers in ([1, 1, 1, 1], [4])
    ]
    for change in changes:
        backend = backend_for(tiny_config(pipeline=change), "ipu-sim")
        backend.train_step(random_batch(tiny_config()), 0.05)
        states.append(backend.state_dict()["model"])
    assert all(equal_states(state, states[0]) for state in states[1:])


def test_compiling_offline_trains_nothing():
    backend = build_backend(tiny_config(), resolve_device("ipu-sim"), offline=True)
    before = backend.state_dict()["model"]
    backend.compile()
    assert equal_states(backend.state_dict()["model"], before)
    assert machine.current.ipus_held == 0


@settings(max_examples=60, deadline=None)
@given(
    layers=st.sampled_from([[4], [2, 2], [1, 1, 2], [0, 4], [0, 4, 0], [1, 1, 1, 1], [0, 2, 2, 0], [1, 1, 1, 1, 0]]),
    accumulation=st.integers(1, 10),
    replicas=st.integers(1, 4),
    evaluation=st.integers(1, 5),
    execution=st.sampled_from(["pipelined", "sharded"]),
)
def test_the_config_is_refused_exactly_if_the_simulator_refuses_it(
    layers, accumulation, replicas, evaluation, execution
):
    """Compares the config's and the simulator's separate implementations of PopTorch's rules."""
    config = tiny_config(
        model={"variant": "vit_test", "width": 8, "num_heads": 1},
        pipeline={
            "layers_per_ipu": layers,
            "global_batch_size": accumulation * replicas,
            "micro_batch_size": 1,
            "replication_factor": replicas,
            "execution": execution,
        },
        run={"evaluation_device_iterations": evaluation},
    )
    backend = build_backend(config, resolve_device("ipu-sim"))
    machine.configure(64)
    refused = []
    for action in (backend.compile, lambda: backend.predict(random_images(1))):
        try:
            action()
        except simulator.Error as error:
            refused.append(str(error))
    assert bool(ipu_violations(config)) == bool(refused), (ipu_violations(config), refused)

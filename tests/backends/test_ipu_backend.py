"""The IPU backend on the simulator: options, annotations, and the hand-over of IPUs and weights."""

from __future__ import annotations

import math
import sys
import types

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
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vit_ipu import simulator
from vit_ipu.backends.build import build_backend, open_backend, resolve_device
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import ConfigError
from vit_ipu.evaluate import evaluation_loader
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.model import ViT
from vit_ipu.runs.checkpoint import Progress
from vit_ipu.simulator import machine
from vit_ipu.train import training_loader


@pytest.fixture(autouse=True)
def ipu():
    """Installs the simulator, not at import, so that IPUs keep real PopTorch; returns the modules of backends/ipu."""
    simulator.install()
    from vit_ipu.backends.ipu import blocks, optimizer, options

    return types.SimpleNamespace(blocks=blocks, optimizer=optimizer, options=options)


def popart(options, name):
    return options._Popart.options.get(name)


def read_io_tiles(options):
    return options.TensorLocations._values["numIOTiles"]


def location(options, name):
    return options.TensorLocations.location_optimizer[name]


ENGINE_OPTIONS = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}

# Each setting of a config, and where in poptorch.Options its value must appear.
OPTIONS = [
    ({"pipeline": {"device_iterations": 2}}, lambda o: o.device_iterations, 2),
    ({"pipeline": {"replication_factor": 2, "global_batch_size": 64}}, lambda o: o.replication_factor, 2),
    ({}, lambda o: o.Training.gradient_accumulation, 8),
    ({}, lambda o: o.output_mode, simulator.OutputMode.All),
    ({}, lambda o: o.random_seed, 42),
    ({}, lambda o: type(o._execution_strategy).__name__, "PipelinedExecution"),
    ({"pipeline": {"execution": "sharded"}}, lambda o: type(o._execution_strategy).__name__, "ShardedExecution"),
    (
        {},
        lambda o: o.Training.accumulation_and_replication_reduction_type,
        simulator.ReductionType.Mean,
    ),
    (
        {"optim": {"gradient_reduction": "sum"}},
        lambda o: o.Training.accumulation_and_replication_reduction_type,
        simulator.ReductionType.Sum,
    ),
    (
        {"pipeline": {"available_memory_proportion": 0.3}},
        lambda o: o.available_memory_proportion,
        {0: 0.3, 1: 0.3, 2: 0.3, 3: 0.3},
    ),
    (
        {"pipeline": {"available_memory_proportion": [0.1, 0.2, 0.3, 0.4]}},
        lambda o: o.available_memory_proportion,
        {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4},
    ),
    ({"pipeline": {"replicated_tensor_sharding": True}}, lambda o: location(o, "useReplicatedTensorSharding"), 1),
    ({}, lambda o: location(o, "useReplicatedTensorSharding"), 0),
    ({"pipeline": {"optimizer_state": "off_chip"}}, lambda o: location(o, "onChip"), 0),
    ({}, lambda o: location(o, "onChip"), 1),
    ({"pipeline": {"io_tiles": 64}}, read_io_tiles, 64),
    (
        {"pipeline": {"io_tiles": 64, "optimizer_state": "off_chip"}},
        lambda o: location(o, "useIOTilesToLoad"),
        1,
    ),
    ({"pipeline": {"io_tiles": 64}}, lambda o: "useIOTilesToLoad" in o.TensorLocations.location_optimizer, False),
    ({"precision": {"partials": "float16"}}, lambda o: popart(o, "partialsTypeMatMuls"), "half"),
    ({"precision": {"partials": "float16"}}, lambda o: popart(o, "convolutionOptions"), {"partialsType": "half"}),
    ({}, lambda o: popart(o, "partialsTypeMatMuls"), "float"),
    ({"precision": {"stochastic_rounding": True}}, lambda o: popart(o, "enableStochasticRounding"), True),
    (
        {"precision": {"automatic_loss_scale": True}},
        lambda o: popart(o, "automaticLossScalingSettings.enabled"),
        True,
    ),
    ({"pipeline": {"executable_cache": "some/cache"}}, lambda o: popart(o, "cachePath"), "some/cache"),
    ({"pipeline": {"executable_cache": "some/cache"}}, lambda o: popart(o, "enableEngineCaching"), True),
    ({"pipeline": {"synthetic_data": True}}, lambda o: popart(o, "syntheticDataMode"), 2),
    (
        {"pipeline": {"profile": "report"}},
        lambda o: popart(o, "engineOptions")["autoReport.directory"],
        "report",
    ),
    ({}, lambda o: popart(o, "accumulateOuterFragmentSettings.schedule"), 3),  # OverlapMemoryOptimized
    ({}, lambda o: popart(o, "accumulateOuterFragmentSettings.excludedVirtualGraphs"), ["0"]),
    ({}, lambda o: popart(o, "disableGradAccumulationTensorStreams"), True),
    ({}, lambda o: popart(o, "subgraphCopyingStrategy"), 1),  # JustInTime
    ({}, lambda o: popart(o, "scheduleNonWeightUpdateGradientConsumersEarly"), True),
    ({}, lambda o: popart(o, "defaultPrefetchBufferingDepth"), 2),
    ({"pipeline": {"prefetch_depth": 5}}, lambda o: popart(o, "defaultPrefetchBufferingDepth"), 5),
    ({}, lambda o: (popart(o, "patterns_level"), popart(o, "patterns")), (2, {"TiedGather": True})),
    (
        {"pipeline": {"popart_options": {"patterns": {"UpdateInplacePrioritiesForIpu": True, "TiedGather": False}}}},
        lambda o: popart(o, "patterns"),
        {"TiedGather": False, "UpdateInplacePrioritiesForIpu": True},
    ),
    (
        {"pipeline": {"popart_options": {"outlineThreshold": 10.0, "subgraphCopyingStrategy": 0}}},
        lambda o: (popart(o, "outlineThreshold"), popart(o, "subgraphCopyingStrategy")),
        (10.0, 0),
    ),
    ({}, lambda o: popart(o, "engineOptions"), ENGINE_OPTIONS),
    (
        {"pipeline": {"engine_options": {"opt.useAutoloader": False, "opt.maxCopyMergeSize": 8388608, "a.b": "c"}}},
        lambda o: popart(o, "engineOptions"),
        {**ENGINE_OPTIONS, "opt.useAutoloader": "false", "opt.maxCopyMergeSize": "8388608", "a.b": "c"},
    ),
    (
        {"pipeline": {"profile": "report", "engine_options": {"profiler.format": "v3", "autoReport.all": False}}},
        lambda o: popart(o, "engineOptions"),
        {
            **ENGINE_OPTIONS,
            "profiler.format": "v3",
            "debug.allowOutOfMemory": "true",
            "autoReport.directory": "report",
            "autoReport.all": "false",
        },
    ),
    ({}, lambda o: popart(o, "autoRecomputation"), None),
    ({"pipeline": {"recompute": "none"}}, lambda o: popart(o, "autoRecomputation"), 0),
    ({"pipeline": {"recompute": "every_block"}}, lambda o: popart(o, "autoRecomputation"), 3),
    (
        {"pipeline": {"recompute": "every_block", "layers_per_ipu": [4]}},
        lambda o: popart(o, "autoRecomputation"),
        4,
    ),
    (
        {"pipeline": {"recompute": "every_block", "execution": "sharded"}},
        lambda o: popart(o, "autoRecomputation"),
        4,
    ),
]


@pytest.mark.parametrize(("change", "read", "expected"), OPTIONS, ids=[str(i) for i in range(len(OPTIONS))])
def test_setting_reaches_poptorchs_options(ipu, change, read, expected):
    options = ipu.options.training_options(tiny_config(**change))
    assert read(options) == expected


def test_inference_has_its_own_options(ipu):
    config = tiny_config(
        pipeline={"global_batch_size": 64, "replication_factor": 2, "device_iterations": 2},
        precision={"stochastic_rounding": True},
    )
    options = ipu.options.inference_options(config)
    assert options.device_iterations == 28  # 28 of 31 cycles are busy
    assert options.Training.gradient_accumulation == 1
    assert options.replication_factor == 2
    assert popart(options, "enableStochasticRounding") is False
    assert options.output_mode == simulator.OutputMode.All
    assert popart(options, "engineOptions") == ENGINE_OPTIONS
    more = tiny_config(run={"evaluation_device_iterations": 6})
    assert ipu.options.inference_options(more).device_iterations == 6
    other = tiny_config(
        pipeline={"io_tiles": 64},
        run={
            "evaluation_layers_per_ipu": [2, 2],
            "evaluation_replication_factor": 3,
            "evaluation_execution": "sharded",
            "evaluation_available_memory_proportion": 0.1,
        },
    )
    options = ipu.options.inference_options(other)
    assert type(options._execution_strategy).__name__ == "ShardedExecution"
    assert (options.replication_factor, options.device_iterations) == (3, 1)
    assert options.available_memory_proportion == {0: 0.1, 1: 0.1}
    assert "numIOTiles" not in options.TensorLocations._values


def test_offline_options_need_no_hardware(ipu):
    options = ipu.options.training_options(tiny_config(), offline=True)
    assert (options.connection_type, options.ipu_version) == (simulator.ConnectionType.Never, 2)
    bow = tiny_config(pipeline={"ipu_version": 21})
    assert ipu.options.inference_options(bow, offline=True).ipu_version == 21


OPTIMIZERS = [
    ("sgd", {"momentum": 0.8, "nesterov": True}, simulator.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ("sgd", {"momentum": 0.0}, simulator.optim.SGD, {"momentum": 0, "nesterov": False}),
    ("adam", {"betas": [0.8, 0.9], "eps": 1e-6}, simulator.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
    ("adamw", {"max_grad_norm": 2.0}, simulator.optim.AdamW, {}),
    ("lamb", {"max_weight_norm": 9.0, "exempt_max_weight_norm": 0.0}, simulator.optim.LAMB, {}),
    (
        "lamb",
        {"bias_correction": False, "max_weight_norm": 9.0, "exempt_max_weight_norm": 0.0},
        simulator.optim.LAMB,
        {},
    ),
]


@pytest.mark.parametrize(("name", "change", "kind", "expected"), OPTIMIZERS)
def test_optimizer_has_the_configs_attributes(ipu, name, change, kind, expected):
    precision = {"compute": "float16", "loss_scale": 64.0, "accumulation": "float16", "first_moment": "float16"}
    config = tiny_config(
        optim={"optimizer": name, "weight_decay": 0.1, "learning_rate": 0.02, **change}, precision=precision
    )
    optimizer = ipu.optimizer.build_optimizer(ViT(config.model), config)
    assert type(optimizer) is kind
    decayed, exempt = optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"], decayed["lr"]) == (0.1, 0.0, 0.02)
    for key, value in expected.items():
        assert decayed[key] == value
    assert optimizer.loss_scaling == 64.0
    assert optimizer.accum_type == torch.float16
    moment = "velocity_accum_type" if name == "sgd" else "first_order_momentum_accum_type"
    assert getattr(optimizer, moment) == torch.float16
    assert not optimizer.variable_attrs.isConstant("lr")
    if name == "adamw":
        assert optimizer.max_grad_norm == 2.0
    if name == "lamb":
        assert (decayed["max_weight_norm"], exempt["max_weight_norm"]) == (9.0, 0.0)
        assert optimizer.bias_correction is change.get("bias_correction", True)


def test_sgd_may_combine_accumulation_and_velocity(ipu):
    for combined in (False, True):
        config = tiny_config(optim={"use_combined_accum": combined})
        optimizer = ipu.optimizer.build_optimizer(ViT(config.model), config)
        assert optimizer.use_combined_accum is combined
    errors = relative_errors(*(trained_weights({"use_combined_accum": combined}) for combined in (False, True)))
    assert max(errors.values()) < 1e-6


def trained_weights(optim):
    config = tiny_config(optim=optim)
    backend = backend_for(config, "ipu-sim")
    backend.load_state_dict({"model": with_random_head(backend.state_dict()["model"])})
    for seed in range(3):
        backend.train_step(random_batch(config, seed), 0.05)
    weights = backend.state_dict()["model"]
    backend.close()
    return weights


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"use_combined_accum": True, "optimizer": "adam"}, "use_combined_accum: adam has no velocity"),
        ({"bias_correction": False, "optimizer": "adamw"}, "bias_correction: false is only for lamb, not adamw"),
    ],
)
def test_attributes_of_other_optimizers_are_refused(optim, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(optim=optim)


def blocks_of(model):
    return {
        name: hook
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if "BeginBlock" in repr(hook)
    }


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([1, 1, 1, 1], {"patch_embed": 0, "blocks.1": 1, "blocks.2": 2, "blocks.3": 3}),
        ([0, 4, 0], {"patch_embed": 0, "blocks.0": 1, "norm": 2}),
        ([4], {"patch_embed": 0}),
    ],
)
def test_stages_begin_where_the_config_says(ipu, layers, expected):
    config = tiny_config(pipeline={"layers_per_ipu": layers})
    model = ViT(config.model)
    ipu.blocks.begin_stages(model, config)
    assert {name: hook._ipu_id for name, hook in blocks_of(model).items()} == expected


def test_the_simulator_sees_the_stages_of_the_config(ipu):
    from vit_ipu.simulator.options.strategies import PipelinedExecution
    from vit_ipu.simulator.tracing.arguments import Arguments
    from vit_ipu.simulator.tracing.trace import trace_model
    from vit_ipu.simulator.weights import Weights

    config = tiny_config(pipeline={"layers_per_ipu": [0, 2, 2, 0]})
    step = ipu.blocks.TrainingStep(ViT(config.model), config)
    ipu.blocks.begin_stages(step.model, config)
    batch = random_batch(config)
    arguments = Arguments(["images", "labels"], [batch.images, batch.labels], {})
    trace = trace_model(step, Weights.of(step), arguments, PipelinedExecution().stage_manager, True)
    assert (trace.num_forward_stages, trace.num_stages, trace.ipus) == (4, 7, {0, 1, 2, 3})


def test_every_blocks_output_is_kept_after_keep_block_outputs(ipu, monkeypatch):
    kept = []
    monkeypatch.setattr(sys.modules["poptorch"], "recomputationCheckpoint", lambda x: kept.append(x) or x)
    model = ViT(tiny_config().model)
    model(torch.zeros(1, 3, 28, 28))
    assert kept == []
    ipu.blocks.keep_block_outputs(model)
    model(torch.zeros(1, 3, 28, 28))
    assert [tuple(x.shape) for x in kept] == [(1, 17, 32)] * 4


def test_the_middle_of_given_blocks_is_kept_once_for_residual_and_mlp(ipu, monkeypatch):
    kept, images = [], torch.randn(1, 3, 28, 28)
    monkeypatch.setattr(sys.modules["poptorch"], "recomputationCheckpoint", lambda x: kept.append(x) or 0 * x)
    model = ViT(tiny_config().model)
    middles = {}
    for index, block in enumerate(model.blocks):
        block.norm2.register_forward_pre_hook(lambda module, x, index=index: middles.update({index: x[0]}))
    model(images)
    before = middles[1]
    ipu.blocks.keep_middles(model, [1, 3])
    outputs = []
    model.blocks[1].register_forward_hook(lambda module, x, output: outputs.append(output))
    model(images)
    assert len(kept) == 2
    torch.testing.assert_close(kept[0], before)  # attention and its residual, before norm2
    assert middles[1].abs().max() == 0  # what follows reads only the kept tensor, which the patch has zeroed
    assert outputs[0].std(dim=1).max() < 1e-6  # of the residual nothing else is left


def test_the_backend_keeps_the_middles_of_the_config(monkeypatch):
    kept = []
    poptorch = sys.modules["poptorch"]
    original = poptorch.recomputationCheckpoint
    monkeypatch.setattr(poptorch, "recomputationCheckpoint", lambda x: kept.append(x.shape) or original(x))
    config = tiny_config(pipeline={"recompute": "every_block", "recompute_mid_layers": [0, 2]})
    backend = backend_for(config, "ipu-sim")
    backend.train_step(random_batch(config), 0.05)
    backend.close()
    calls_per_forward = 4 + 2
    assert kept
    assert len(kept) % calls_per_forward == 0
    for change, message in (
        ({"recompute_mid_layers": [4]}, "recompute_mid_layers: there is no block 4: the blocks are 0 to 3"),
        ({"recompute_mid_layers": [1, 1]}, r"recompute_mid_layers \[1, 1\] names a block twice: name each block once"),
        ({"recompute_mid_layers": [1], "recompute": "none"}, "has no effect with recompute: none: use every_block"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(pipeline=change)


@pytest.mark.parametrize("mode", ["accumulation_loop", "device_iteration_loop"])
def test_overlapped_io_marks_every_input_and_the_loss(monkeypatch, mode):
    poptorch, marked = sys.modules["poptorch"], []
    for name in ("set_overlap_for_input", "set_overlap_for_output"):
        original = getattr(poptorch, name)
        monkeypatch.setattr(
            poptorch,
            name,
            lambda tensors, mode, name=name, original=original: (
                marked.append((name, mode.value)) or original(tensors, mode)
            ),
        )
    config = tiny_config(
        pipeline={"execution": "sharded", "io_tiles": 32, "overlap_io": mode}, data={"mixup_alpha": 0.2}
    )
    backend = backend_for(config, "ipu-sim")
    assert math.isfinite(backend.train_step(random_batch(config), 0.05).loss)
    backend.close()
    assert {(name, value) for name, value in marked} == {
        ("set_overlap_for_input", f"overlap_{mode}"),
        ("set_overlap_for_output", f"overlap_{mode}"),
    }


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


def test_the_model_itself_has_no_ipu_blocks():
    model = ViT(tiny_config().model)
    assert blocks_of(model) == {}
    assert all(isinstance(module, nn.Module) for module in model.modules())


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

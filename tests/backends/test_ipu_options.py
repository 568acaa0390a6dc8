"""Options of PopTorch that follow from a config, for training, inference and compilation offline."""

from __future__ import annotations

import pytest
from helpers import tiny_config

from vit_ipu import simulator

pytestmark = pytest.mark.usefixtures("ipu")


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

"""poptorch.Options: accepted and refused values, copies, freezing and pickling."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.poptorch_core import _validateOptions

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


# ------------------------------------------------------------------------- what each setter sets

SETTERS = [
    ("autoRoundNumIPUs", (), "auto_round_num_ipus", True),
    ("broadcastBuffers", (False,), "broadcast_buffers", False),
    ("connectionType", (poptorch.ConnectionType.OnDemand,), "connection_type", 1),
    ("deviceIterations", (3,), "device_iterations", 3),
    ("logDir", ("logs",), "log_dir", "logs"),
    ("maxRepeatLogs", (7,), "max_repeat_logs", 7),
    ("maxRepeatLogs", (None,), "max_repeat_logs", 2**64 - 1),
    ("modelName", ("vit",), "model_name", "vit"),
    ("outputMode", (poptorch.OutputMode.EveryN, 2), "output_return_period", 2),
    ("randomSeed", (5,), "random_seed", 5),
    ("replicationFactor", (4,), "replication_factor", 4),
    ("setAvailableMemoryProportion", ({"IPU1": 0.3},), "available_memory_proportion", {1: 0.3}),
    ("syncPattern", (poptorch.SyncPattern.SinglePipeline,), "sync_pattern", 1),
    ("useIpuId", (2,), "ipu_id", 2),
    ("useIpuModel", (True,), "use_model", True),
    ("useOfflineIpuTarget", (), "ipu_version", 2),
    ("Training.gradientAccumulation", (4,), "gradient_accumulation", 4),
    (
        "Training.accumulationAndReplicationReductionType",
        (poptorch.ReductionType.Sum,),
        "accumulation_and_replication_reduction_type",
        0,
    ),
    (
        "Training.setMeanAccumulationAndReplicationReductionStrategy",
        (poptorch.MeanReductionStrategy.Running,),
        "meanAccumulationAndReplicationReductionStrategy",
        0,
    ),
    ("Training.setAutomaticLossScaling", (True,), "automaticLossScalingSettings.enabled", True),
    ("Training.setConvolutionDithering", (True,), "convolutionOptions", {"enableConvDithering": True}),
    ("Precision.setPartialsType", (torch.half,), "partialsTypeMatMuls", "half"),
    ("Precision.enableStochasticRounding", (True,), "enableStochasticRounding", True),
    ("Precision.enableFloatingPointExceptions", (True,), "enableFloatingPointChecks", True),
    ("Distributed.configureProcessId", (1, 4), "distributed_process_id", 1),
    ("TensorLocations.numIOTiles", (64,), "numIOTiles", 64),
    (
        "TensorLocations.setWeightLocation",
        (poptorch.TensorLocationSettings().useOnChipStorage(False).useReplicatedTensorSharding(),),
        "location_weight",
        {"onChip": 0, "useReplicatedTensorSharding": 1},
    ),
    (
        "TensorLocations.setActivationLocation",
        (poptorch.TensorLocationSettings().useIOTilesToLoad().useIOTilesToStore().useOnChipStorage(None),),
        "location_activation",
        {"useIOTilesToLoad": 1, "useIOTilesToStore": 1},
    ),
    (
        "TensorLocations.setOptimizerLocation",
        (poptorch.TensorLocationSettings().minElementsForOffChip(8),),
        "location_optimizer",
        {"minElementsForOffChip": 8},
    ),
    (
        "TensorLocations.setAccumulatorLocation",
        (poptorch.TensorLocationSettings().minElementsForReplicatedTensorSharding(8),),
        "location_accumulator",
        {"minElementsForReplicatedTensorSharding": 8},
    ),
    ("inputReplicaGrouping", (4, poptorch.CommGroupType.NoGrouping), "input_group_size", 1),
    ("updatableNamedBuffers", (["a"],), "updatableNamedBuffers", ["a"]),
    ("enableSyntheticData", (True,), "syntheticDataMode", 2),
    ("enableStableNorm", (True,), "enableStableNorm", True),
    ("logCycleCount", (True,), "instrumentWithHardwareCycleCounter", True),
    ("enableExecutableCaching", ("cache",), "cachePath", "cache"),
    ("enableExecutableCaching", (None,), "enableEngineCaching", False),
    ("setExecutionStrategy", (poptorch.ShardedExecution(),), "execution_mode", 1),
    ("setExecutionStrategy", (poptorch.SerialPhasedExecution("a"),), "serial_phases_execution", True),
]


@pytest.mark.parametrize(
    ("name", "arguments", "option", "value"), SETTERS, ids=[f"{i}-{s[0]}" for i, s in enumerate(SETTERS)]
)
def test_setters_set_options_that_poptorchs_cpp_side_accepts(name, arguments, option, value):
    made = poptorch.Options()
    setter = made
    for part in name.split("."):
        setter = getattr(setter, part)
    assert setter(*arguments) is not None, "setters chain"
    if made.defaultOutputMode():
        made.outputMode(poptorch.OutputMode.All)
    written = made.toDict()
    assert written[option] == value
    _validateOptions(written)


# ------------------------------------------------------------------------------ what is refused

REFUSED = [
    (lambda o: o.deviceIterations("3"), AssertionError, "Unexpected type <class 'str'> for option device_iterations"),
    (lambda o: o.set(nonsense=1), AssertionError, "Invalid option nonsense, valid options are"),
    (lambda o: setattr(o, "nonsense", 1), AssertionError, "Invalid option nonsense"),
    (lambda o: setattr(o, "_nonsense", 1), AttributeError, "Invalid private attribute _nonsense"),
    (lambda o: o.nonsense, AttributeError, "Invalid attribute nonsense"),
    (
        lambda o: o.outputMode(poptorch.OutputMode.EveryN),
        AssertionError,
        "EveryN anchor must have output_return_period",
    ),
    (lambda o: o.setAvailableMemoryProportion({"0": 0.1}), AssertionError, r'\{"IPU0": 0.5\} .* Invalid key: 0'),
    (lambda o: o.setAvailableMemoryProportion({0: 0.1}), AttributeError, "startswith"),
    (lambda o: o.inputReplicaGrouping(2, poptorch.CommGroupType.All), ValueError, "input_group_type cannot be All"),
    (
        lambda o: o.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive),
        ValueError,
        "input_group_size cannot be larger than replication_factor",
    ),
    (
        lambda o: o.replicationFactor(4).inputReplicaGrouping(3, poptorch.CommGroupType.Consecutive),
        ValueError,
        "input_group_size must be a factor of replication_factor",
    ),
    (lambda o: o.TensorLocations.numIOTiles(33), AssertionError, "even number between 32 and 192"),
    (
        lambda o: o.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.NoReduction),
        ValueError,
        "must be set to poptorch.ReductionType.Mean or poptorch.ReductionType.Sum",
    ),
    (
        lambda o: o.Training.accumulationAndReplicationReductionType(1),
        ValueError,
        "must be set to poptorch.ReductionType.Mean",
    ),
    (lambda o: o.Precision.setPartialsType(torch.int8), ValueError, "setPartialsType should be either"),
    (lambda o: o.Precision.runningStatisticsAlwaysFloat(1), ValueError, "needs to be set to a bool"),
    (lambda o: o.Precision.enableFloatingPointExceptions(1), AssertionError, "needs to be set to a bool"),
    (lambda o: o.Jit.traceModel(True), ValueError, r"options.Jit.traceModel\(True\) is no longer supported"),
    (lambda o: o.toDict(), AssertionError, "An output mode must be picked before serialisation"),
    (lambda o: o.Distributed.update({"ipuof_configs": 1}), AssertionError, "they have some keys in common"),
    (lambda o: o.from_json('{"nonsense": 1}'), AttributeError, "Invalid attribute nonsense"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), REFUSED, ids=[str(i) + "-" + r[2][:30] for i, r in enumerate(REFUSED)]
)
def test_invalid_options_are_refused_at_once(change, error, message):
    with pytest.raises(error, match=message):
        change(poptorch.Options())


INVALID = [
    ("nonsense", True, "Unknown bool option nonsense"),
    ("nonsense", 1, "Unknown uint64 option nonsense"),
    ("nonsense", 1.0, "Unknown floating point option nonsense"),
    ("nonsense", "x", "Unknown string option nonsense"),
    ("nonsense", ["x"], "Unknown set / vector option nonsense"),
    ("nonsense", {"x": "y"}, "Unknown map option nonsense"),
    ("autoRecomputation", True, "Unknown bool option autoRecomputation"),
    ("autoRecomputation", 5, "Value for RecomputationType out of range"),
    ("mergeVarUpdate", 4, "Value for MergeVarUpdateType out of range"),
    ("accumulateOuterFragmentSettings.schedule", 4, "Value for popart::AccumulateOuterFragmentSchedule out of range"),
    ("firstDotOp", -1, "Value of option firstDotOp is negative: -1"),
    ("dotChecks", torch.empty(1), "Unknown value type <class 'torch.Tensor'> for option dotChecks"),
    ("patterns", {"PadSum": True}, "should not be set without first setting 'patterns_level'"),
    ("location_nowhere", {"onChip": 1}, "Unknown tensor location location_nowhere"),
    ("location_weight", {"nonsense": 1}, "Unknown option 'nonsense' for tensor location location_weight"),
]


@pytest.mark.parametrize(("name", "value", "message"), INVALID, ids=[f"{n}={type(v).__name__}" for n, v, _ in INVALID])
def test_invalid_popart_options_are_refused_at_compilation(name, value, message):
    wrong = options()
    wrong._Popart.set(name, value)
    executor = poptorch.trainingModel(TwoStages(), wrong)
    with pytest.raises(poptorch.Error, match=message):
        executor.compile(*data(8))


def test_patterns_need_a_valid_level():
    wrong = poptorch.Options().outputMode(poptorch.OutputMode.All)
    wrong._Popart.setPatterns({"PadSum": True}, 4)
    with pytest.raises(poptorch.Error, match="Value for PatternsLevel out of range"):
        _validateOptions(wrong.toDict())
    wrong._Popart.setPatterns({"PadSum": True}, 0)
    _validateOptions(wrong.toDict())


# --------------------------------------------------------------------------- copies and freezing


def test_a_copy_is_deep_and_not_frozen():
    made = poptorch.Options().anchorTensor("a", "b") or poptorch.Options()
    made.Training.gradientAccumulation(4)
    made._Popart.set("autoRecomputation", 3)
    made._freeze()
    free = copy.deepcopy(made)
    free.deviceIterations(5).Training.gradientAccumulation(8)
    free._Popart.set("autoRecomputation", 1)
    free.anchorTensor("x", "y")
    free.TensorLocations.setWeightLocation(poptorch.TensorLocationSettings().useIOTilesToStore(True))
    assert (made.device_iterations, made.Training.gradient_accumulation) == (1, 4)
    assert made._Popart.options["autoRecomputation"] == 3
    assert made.anchored_tensors == {}
    # Precision and Training of a copy write to the copy's PopART options.
    free.Precision.enableStochasticRounding(True)
    assert free._Popart.options["enableStochasticRounding"] is True
    assert "enableStochasticRounding" not in made._Popart.options


FROZEN = {
    "Options": lambda o: o.deviceIterations(2),
    "Training": lambda o: o.Training.gradientAccumulation(2),
    "_Popart": lambda o: o._Popart.set("enableOutlining", True),
    "Precision": lambda o: o.Precision.enableStochasticRounding(True),
    "Distributed": lambda o: o.Distributed.configureProcessId(0, 1),
    "TensorLocations": lambda o: o.TensorLocations.numIOTiles(32),
    "strategy": lambda o: o.setExecutionStrategy(poptorch.ShardedExecution()),
    "seed": lambda o: o.randomSeed(1),
}


@pytest.mark.parametrize("part", sorted(FROZEN))
def test_a_frozen_option_cannot_be_changed(part):
    used = options()
    executor = poptorch.trainingModel(TwoStages(), used)
    for frozen in (used, executor.options):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            FROZEN[part](frozen)
    used._unfreeze()
    FROZEN[part](used)


def test_options_are_pickled_and_printed():
    made = poptorch.Options().replicationFactor(4)
    made._Popart.set("autoRecomputation", 3)
    again = pickle.loads(pickle.dumps(made))
    assert repr(again) == repr(made)
    assert repr(made).startswith("Options(replication_factor=4, ")
    assert "'autoRecomputation': 3" in repr(made) or "autoRecomputation=3" in repr(made)
    assert repr(made) != repr(poptorch.Options())


def test_a_group_of_options_can_change_its_class():
    class Mine(poptorch.options._DistributedOptions):
        pass

    made = poptorch.Options()
    made.Distributed.__class__ = Mine
    assert isinstance(made.clone().Distributed, Mine)


def test_attributes_can_be_nested():
    with poptorch.Attribute(__outline={"layer": "embedding"}):
        with poptorch.Attribute(__outline={"layer": "head", "other": "x"}):
            assert poptorch.Attribute._current_attrs == {"__outline": {"layer": "head", "other": "x"}}
        assert poptorch.Attribute._current_attrs == {"__outline": {"layer": "embedding"}}
    assert poptorch.Attribute._current_attrs == {}


def test_profiling_sets_the_report_folder_and_warns_about_the_environment(monkeypatch, caplog):
    made = poptorch.Options().enableProfiling("profiles")
    assert made._Popart.options["engineOptions"]["autoReport.directory"] == "profiles"
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", '{"autoReport.all": "true"}')
    poptorch.Options().enableProfiling()
    assert "Profiling setting overridden by environment variable" in caplog.text

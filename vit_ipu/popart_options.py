"""The options of PopART that PopTorch's `_Popart.set` accepts, each with the type of its value.

Source: graphcore/poptorch, popart_compiler/source/SessionOptions.cpp:95-427. PopTorch itself refuses a wrong name or
type only when it compiles. Options that the config has keys for are left out.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Dict, List, Mapping, Optional

from vit_ipu.errors import suggest

PATTERNS = "patterns"
"""The key for PopART's patterns, which `_Popart.setPatterns` takes: names to true or false."""

_NAMES: Dict[type, str] = {
    bool: """
        aliasZeroCopy batchSerializationSettings.concatOnExecutionPhaseChange
        batchSerializationSettings.concatOnPipelineStageChange batchSerializationSettings.concatOnVirtualGraphChange
        compileEngine constantWeights decomposeGradSum delayVarUpdates disableGradAccumulationTensorStreams
        disableOptimizerStateTensorStreams dotOpNames enableDistributedReplicatedGraphs enableExplicitIR
        enableExplicitMainLoops enableFloatingPointChecks enableFullyConnectedPass enableInplaceAmbiguityChecking
        enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining
        enableOutliningCopyCostPruning enablePrefetchDatastreams enableSerializedMatmuls enableStableNorm
        enableSupportedDataTypeCasting ensureFp32LossScaleTensor explicitRecomputation exportPoplarComputationGraph
        exportPoplarVertexGraph groupHostSync groupNormStridedChannelGrouping instrumentWithHardwareCycleCounter
        opxAliasChecking opxModifyChecking rearrangeAnchorsOnHost rearrangeStreamsOnHost
        replicatedCollectivesSettings.mergeAllReduceCollectives
        replicatedCollectivesSettings.prepareScheduleForMergingCollectives
        scheduleNonWeightUpdateGradientConsumersEarly separateCallOpPdfs strictOpVersions useHostCopyOps
    """,
    int: """
        accumulateOuterFragmentSettings.schedule autodiffSettings.stitchStrategy
        automaticLossScalingSettings.gradientTensorTrackingMethod automaticLossScalingSettings.updatePeriod
        batchSerializationSettings.batchSchedule batchSerializationSettings.factor batchSerializationSettings.method
        batchSerializationSettings.transformContext defaultBufferingDepth executionPhaseSettings.phases
        executionPhaseSettings.stages finalDotOp firstDotOp looseThresholdAtPeak max_repeat_logs mergeVarUpdate
        mergeVarUpdateMemThreshold subgraphCopyingStrategy swapLimitScheduler transitiveClosureOptimizationThreshold
    """,
    float: """
        automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
        outlineSequenceBreakCost outlineThreshold timeLimitScheduler
    """,
    str: "customCodeletCompileFlags kahnTieBreaker logDir saveInitializersToFile serializedPoprithmsShiftGraphsDir",
    list: "accumulateOuterFragmentSettings.excludedVirtualGraphs customCodelets dotChecks hardwareInstrumentations",
    dict: "gclOptions lstmOptions matmulOptions reportOptions",
}
OWN_KEYS = {
    "accumulation_and_replication_reduction_type": "optim.gradient_reduction",
    "autoRecomputation": "pipeline.recompute",
    "automaticLossScalingSettings.enabled": "precision.automatic_loss_scale",
    "cachePath": "pipeline.executable_cache",
    "convolutionOptions": "precision.partials",
    "defaultPrefetchBufferingDepth": "pipeline.prefetch_depth",
    "device_iterations": "pipeline.device_iterations",
    "enableEngineCaching": "pipeline.executable_cache",
    "enableStochasticRounding": "precision.stochastic_rounding",
    "engineOptions": "pipeline.engine_options",
    "gradient_accumulation": "pipeline.global_batch_size",
    "ipu_version": "pipeline.ipu_version",
    "numIOTiles": "pipeline.io_tiles",
    "partialsTypeMatMuls": "precision.partials",
    "random_seed": "run.seed",
    "replication_factor": "pipeline.replication_factor",
    "syntheticDataMode": "pipeline.synthetic_data",
}
"""Options that have a key of the config."""

_NUM_CHOICES = {
    "accumulateOuterFragmentSettings.schedule": 4,
    "autodiffSettings.stitchStrategy": 4,
    "automaticLossScalingSettings.gradientTensorTrackingMethod": 3,
    "batchSerializationSettings.batchSchedule": 4,
    "batchSerializationSettings.method": 3,
    "batchSerializationSettings.transformContext": 2,
    "mergeVarUpdate": 4,
    "subgraphCopyingStrategy": 2,
}
"""Options that choose by number, with the number of choices (popart sessionoptions.hpp)."""

_LISTS_OF_NUMBERS = ("accumulateOuterFragmentSettings.excludedVirtualGraphs", "hardwareInstrumentations")
"""Lists whose texts PopTorch reads as numbers (SessionOptions.cpp)."""

_PATTERNS = """
    ConvFlipWeightsDoubleFlip DecomposeBinaryConstScalar ExpandCast InPlace InitAccumulate LSTMOp LambSerialisedWeight
    NegativeOneScale NlllWithSoftmaxGradDirect OpToIdentity PackedDataBlock PadSum PostNRepl PreUniRepl
    RemoveUnnecessaryLossGradCast Slice2SliceSubsample SoftmaxGradDirect SplitGather SplitGradOpToConcat SplitOp
    SumToAdd TiedGather TiedGatherAccumulate TransposeToIdentityOrReshapePattern UpdateInplacePrioritiesForIpu
    UpsampleToResize
"""
"""PopART's patterns that can be switched (graphcore/popart, willow/src/patterns); it always needs the others."""

SET_BY_POPTORCH = """
    accumulationAndReplicationReductionType accumulationFactor auto_round_num_ipus broadcast_buffers
    compilationProgressTotal connection_type distributed_process_id enableGradientAccumulation enablePipelining
    enableReplicatedGraphs execution_mode globalReplicaOffset globalReplicationFactor input_cgt input_group_size ipu_id
    log_dir meanAccumulationAndReplicationReductionStrategy model_name num_distributed_processes output_mode
    output_return_period separate_backward_phase serial_phases_execution sync_pattern tensors_liveness
    updatableNamedBuffers use_model virtualGraphMode
"""
"""Options that PopTorch sets from the model, the optimizer and its other options."""

_IN_YAML = {
    bool: "true or false",
    int: "a whole number of 0 or more",
    float: "a finite number with a decimal point",
    str: "a text",
    list: "a list of texts",
    dict: "a mapping of texts to texts",
}


def popart_options_problem(options: Mapping[str, Any]) -> Optional[str]:
    """Returns what is wrong with the names or values of `options`, with the remedy, or None."""
    for name, value in options.items():
        kind = _kind_of(name)
        if name == PATTERNS:
            problem = _patterns_problem(value)
        elif kind is None:
            problem = f"{name} cannot be set here{_instead(name)}"
        else:
            problem = _value_problem(name, value, kind)
        if problem is not None:
            return problem
    return None


def _patterns_problem(patterns: Any) -> Optional[str]:
    if not (isinstance(patterns, dict) and all(isinstance(is_on, bool) for is_on in patterns.values())):
        return f"{PATTERNS} must map names of patterns to true or false, but it is {patterns!r}"
    known = _PATTERNS.split()
    unknown = next((str(name) for name in patterns if name not in known), None)
    return None if unknown is None else f"{PATTERNS}: {unknown} cannot be switched{suggest(unknown, known)}"


def _value_problem(name: str, value: Any, kind: type) -> Optional[str]:
    if not _fits(value, kind):
        return f"{name} must be {_IN_YAML[kind]}, but it is {value!r}"
    if name in _NUM_CHOICES and value >= _NUM_CHOICES[name]:
        return f"{name} must be 0 to {_NUM_CHOICES[name] - 1}, but it is {value}"
    if name in _LISTS_OF_NUMBERS and not all(item.isdigit() for item in value):
        return f"{name} must be a list of whole numbers as texts, such as ['0'], but it is {value!r}"
    return None


def _kind_of(name: str) -> Optional[type]:
    return next((kind for kind, names in _NAMES.items() if name in names.split()), None)


def _instead(name: str) -> str:
    if name in OWN_KEYS:
        return f": use {OWN_KEYS[name]}"
    if name in SET_BY_POPTORCH.split():
        return ": PopTorch sets it"
    return suggest(name, settable_options())


def settable_options() -> List[str]:
    """Returns the names that `pipeline.popart_options` may contain."""
    return [name for names in _NAMES.values() for name in names.split()] + [PATTERNS]


def _fits(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and value >= 0
    if kind is float:
        return type(value) is float and isfinite(value)
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return type(value) is kind

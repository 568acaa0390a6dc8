"""Builds poptorch.Options from a config, for training and for inference."""

from __future__ import annotations

from typing import Any, Dict

import poptorch
import torch

from vit_ipu.backends.ipu.distributed import new_options
from vit_ipu.config import Config
from vit_ipu.pipeline import BatchPlan
from vit_ipu.popart_options import PATTERNS

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

# popart::RecomputationType (popart sessionoptions.hpp:139-152)
_RECOMPUTE_NONE, _RECOMPUTE_PIPELINE, _RECOMPUTE_ALL = 0, 3, 4
# popart::AccumulateOuterFragmentSchedule and popart::SubgraphCopyingStrategy (sessionoptions.hpp:584-656)
_OVERLAP_MEMORY_OPTIMIZED, _JUST_IN_TIME = 3, 1

# What Graphcore's programs always set (graphcore/examples: vision/vit/pytorch/ipu_options.py and nlp/bert/pytorch).
POPART_OPTIONS: Dict[str, Any] = {
    # the IPUs update their weights side by side; PopART's default is one IPU after the other
    "accumulateOuterFragmentSettings.schedule": _OVERLAP_MEMORY_OPTIMIZED,
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    # otherwise the host also reads the gradient accumulators whenever it reads the weights
    "disableGradAccumulationTensorStreams": True,
    "subgraphCopyingStrategy": _JUST_IN_TIME,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
}
PATTERNS_LEVEL = 2  # popart::PatternsLevel::Default (PopTorch's default level, python/options.py:428)
POPART_PATTERNS = {"TiedGather": True}
ENGINE_OPTIONS = {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}


def training_options(config: Config, *, offline: bool = False) -> poptorch.Options:
    """Returns the options of the training executor, which returns the loss of every micro-batch."""
    plan = BatchPlan.of(config)
    options = _common_options(config, offline=offline)
    options.deviceIterations(plan.device_iterations)
    options.outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(plan.gradient_accumulation)
    reduction = {"mean": poptorch.ReductionType.Mean, "sum": poptorch.ReductionType.Sum}
    options.Training.accumulationAndReplicationReductionType(reduction[config.optim.gradient_reduction])
    options.Training.setAutomaticLossScaling(config.precision.automatic_loss_scale)
    options.Precision.enableStochasticRounding(config.precision.stochastic_rounding)
    options.TensorLocations.setOptimizerLocation(_optimizer_location(config))
    if config.pipeline.io_tiles is not None:
        options.TensorLocations.numIOTiles(config.pipeline.io_tiles)
    _set_recomputation(options, config)
    return options


def inference_options(config: Config, *, offline: bool = False) -> poptorch.Options:
    """Returns the options of the inference executor: no accumulation, and every micro-batch rounds to nearest."""
    options = _common_options(config.for_evaluation(), offline=offline)
    options.deviceIterations(BatchPlan.of_evaluation(config).device_iterations)
    options.outputMode(poptorch.OutputMode.All)
    options.Precision.enableStochasticRounding(False)
    return options


def _common_options(config: Config, *, offline: bool) -> poptorch.Options:
    pipeline = config.pipeline
    options = new_options(config)
    options.randomSeed(config.run.seed)
    if pipeline.execution == "pipelined":
        options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.SameAsIpu))
    else:
        options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.SameAsIpu))
    options.Precision.setPartialsType(DTYPES[config.precision.partials])
    if pipeline.available_memory_proportion is not None:
        options.setAvailableMemoryProportion(_proportions(config))
    if pipeline.executable_cache is not None:
        options.enableExecutableCaching(pipeline.executable_cache)
    options.enableSyntheticData(pipeline.synthetic_data)
    if offline:
        options.useOfflineIpuTarget(pipeline.ipu_version)
    _set_popart_options(options, config)
    return options


def _set_popart_options(options: poptorch.Options, config: Config) -> None:
    """Sets what Graphcore's programs set, then what profiling sets, then the options of the config."""
    pipeline = config.pipeline
    popart = {**POPART_OPTIONS, "defaultPrefetchBufferingDepth": pipeline.prefetch_depth, **pipeline.popart_options}
    patterns = {**POPART_PATTERNS, **popart.pop(PATTERNS, {})}
    for name, value in popart.items():
        options._Popart.set(name, value)
    options._Popart.setPatterns(patterns, PATTERNS_LEVEL)
    given = {name: _engine_value(value) for name, value in pipeline.engine_options.items()}
    options._Popart.setEngineOptions(dict(ENGINE_OPTIONS))
    if pipeline.profile is not None:
        options.enableProfiling(pipeline.profile)  # adds to the engine options
    options._Popart.setEngineOptions({**options._Popart.options["engineOptions"], **given})


def _engine_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _proportions(config: Config) -> Dict[str, float]:
    proportions = config.pipeline.available_memory_proportion or ()
    ipus = len(config.layers_per_ipu)
    each = proportions if len(proportions) == ipus else proportions * ipus
    return {f"IPU{ipu}": proportion for ipu, proportion in enumerate(each)}


def _optimizer_location(config: Config) -> poptorch.TensorLocationSettings:
    pipeline = config.pipeline
    location = poptorch.TensorLocationSettings()
    location.useOnChipStorage(pipeline.optimizer_state == "on_chip")
    location.useReplicatedTensorSharding(pipeline.replicated_tensor_sharding)
    if pipeline.io_tiles is not None and (
        pipeline.optimizer_state == "off_chip" or pipeline.replicated_tensor_sharding
    ):
        location.useIOTilesToLoad(True).useIOTilesToStore(True)
    return location


def _set_recomputation(options: poptorch.Options, config: Config) -> None:
    if config.pipeline.recompute == "none":
        options._Popart.set("autoRecomputation", _RECOMPUTE_NONE)
    elif config.pipeline.recompute == "every_block":
        # PopART knows RecomputationType::Pipeline only if there is a pipeline (recompute.cpp:226-231)
        pipelined = config.pipeline.execution == "pipelined" and len(config.layers_per_ipu) > 1
        options._Popart.set("autoRecomputation", _RECOMPUTE_PIPELINE if pipelined else _RECOMPUTE_ALL)

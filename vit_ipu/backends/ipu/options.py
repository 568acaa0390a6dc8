"""Builds poptorch.Options from a config, for training and for inference."""

from __future__ import annotations

from typing import Dict

import poptorch
import torch

from vit_ipu.backends.ipu.distributed import new_options
from vit_ipu.config import Config
from vit_ipu.pipeline import BatchPlan

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

# popart::RecomputationType (popart sessionoptions.hpp:139-152)
_RECOMPUTE_NONE, _RECOMPUTE_PIPELINE, _RECOMPUTE_ALL = 0, 3, 4


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
    _set_recomputation(options, config)
    return options


def inference_options(config: Config, *, offline: bool = False) -> poptorch.Options:
    """Returns the options of the inference executor: no accumulation, and every micro-batch rounds to nearest."""
    options = _common_options(config, offline=offline)
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
    if pipeline.io_tiles is not None:
        options.TensorLocations.numIOTiles(pipeline.io_tiles)
    if pipeline.executable_cache is not None:
        options.enableExecutableCaching(pipeline.executable_cache)
    if pipeline.profile is not None:
        options.enableProfiling(pipeline.profile)
    options.enableSyntheticData(pipeline.synthetic_data)
    if offline:
        options.useOfflineIpuTarget()
    return options


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

"""What PopTorch checks of options when a model is wrapped, and of a trace when it is compiled."""

from __future__ import annotations

from typing import Dict, Optional

from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.errors import cpp_error, error
from vit_ipu.simulator.machine import round_up_num_ipus
from vit_ipu.simulator.options import Options
from vit_ipu.simulator.strategies import PipelinedExecution, ShardedExecution
from vit_ipu.simulator.tracing import Trace

_BROADCAST_BUFFERS = (
    "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming out of sync "
    "between replicas, you can disable buffer broadcasting using poptorch.Options.broadcastBuffers(False)."
)


def prepared(options: Optional[Options], training: bool) -> Options:
    """The user's options are frozen; the executor has a clone with an output mode picked."""
    if options is None:
        options = Options()
    elif not isinstance(options, Options):
        raise error("Invalid type: 'options' is of type {} (Expected poptorch.Options)".format(type(options)))
    options._freeze()
    options = options.clone()
    for name, is_used in _unsimulated_options(options).items():
        if is_used:
            raise NotImplementedError("poptorch.Options.{} is not simulated".format(name))
    if options.defaultOutputMode():
        options.outputMode(OutputMode.Final if training else OutputMode.All)
    if not training and options.Training.gradient_accumulation != 1:
        pipelined = _is_pipelined(options)
        raise error(
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value (1) "
            "when running a poptorch.inferenceModel()."
            + (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run for "
                "pipelined execution instead."
                if pipelined
                else ""
            )
        )
    return options


_RECOMPUTE_PIPELINE = 3  # popart::RecomputationType::Pipeline


def ipus_to_reserve(trace: Trace, options: Options) -> int:
    """The number of IPUs. Raises Error where PopTorch would not compile."""
    if _is_pipelined(options):
        _check_stages(trace, options)
    has_pipeline = _is_pipelined(options) and len(trace.ipus) > 1
    if not has_pipeline and options._Popart.options.get("autoRecomputation") == _RECOMPUTE_PIPELINE:
        raise cpp_error("Invalid RecomputationType::Pipeline in autoAnnotate when using implicit pipelining")
    if trace.mutates_buffers and options.replication_factor > 1:
        if options.broadcast_buffers:
            raise cpp_error(_BROADCAST_BUFFERS)
        raise NotImplementedError("buffers that differ between replicas are not simulated")
    num_ipus = (max(trace.ipus, default=0) + 1) * int(options.replication_factor)
    return round_up_num_ipus(num_ipus, bool(options.auto_round_num_ipus))


def _is_pipelined(options: Options) -> bool:
    strategy = options._execution_strategy
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def _unsimulated_options(options: Options) -> Dict[str, bool]:
    popart = options._Popart.options
    return {
        "inputReplicaGrouping": options.input_group_size > 1,
        "anchorTensor": bool(options.anchored_tensors),
        "useIpuModel": options.exists("use_model") and options.use_model,
        "enableSyntheticData": bool(popart.get("syntheticDataMode", 0)),
        "logCycleCount": bool(popart["instrumentWithHardwareCycleCounter"]),
        "Training.setAutomaticLossScaling": bool(popart.get("automaticLossScalingSettings.enabled", False)),
    }


def _check_stages(trace: Trace, options: Options) -> None:
    """Training needs G >= 2F-1, inference D >= F (Compiler.cpp:675-700)."""
    stages, forward = trace.num_stages, trace.num_forward_stages
    if trace.is_training and options.Training.gradient_accumulation < stages:
        raise cpp_error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            "stages ({}) when using poptorch.PipelinedExecution. Please note that a model with {} pipeline stages in "
            "PopTorch will have an additional {} stages when training.".format(stages, forward, stages - forward)
        )
    if not trace.is_training and options.device_iterations < stages:
        raise cpp_error(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages ({}) "
            "when using PopTorch.PipelinedExecution.".format(stages)
        )

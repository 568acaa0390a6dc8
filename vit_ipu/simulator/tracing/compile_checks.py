"""PopTorch's checks of options when a model is wrapped, and of arguments and trace when the model is compiled."""

from __future__ import annotations

import os
from typing import Iterable, Optional

from vit_ipu.simulator import popart_enums as popart
from vit_ipu.simulator.enums import ConnectionType, OutputMode
from vit_ipu.simulator.errors import cpp_error, error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.machine import round_up_num_ipus
from vit_ipu.simulator.options.options import Options
from vit_ipu.simulator.options.session_options import validate
from vit_ipu.simulator.options.strategies import PipelinedExecution, ShardedExecution
from vit_ipu.simulator.tracing.arguments import Arguments, micro_batch_of, micro_batches_of_input
from vit_ipu.simulator.tracing.trace import Trace

_BROADCAST_BUFFERS = (
    "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming out of sync "
    "between replicas, you can disable buffer broadcasting using poptorch.Options.broadcastBuffers(False)."
)


def clone_for_executor(options: Optional[Options], training: bool) -> Options:
    """Freezes the user's options and returns a clone for the executor, in which an output mode is chosen."""
    if options is None:
        options = Options()
    elif not isinstance(options, Options):
        raise error(f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)")
    options._freeze()
    options = options.clone()
    if options.defaultOutputMode():
        options.outputMode(OutputMode.Final if training else OutputMode.All)
    for anchor in options.anchored_tensors.values():
        if anchor[1]:  # the anchor uses the model's output mode
            anchor[2] = options.output_mode
            anchor[3] = options.output_return_period if anchor[2] == OutputMode.EveryN else 1
    if not training and options.Training.gradient_accumulation != 1:
        pipelined = is_pipelined(options)
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


def first_micro_batch(arguments: Arguments, options: Options) -> Arguments:
    """Returns the first micro-batch of a call's arguments, which is the part that is traced.

    Raises AssertionError if the number of micro-batches does not divide an input's batch dimension.
    """
    count = micro_batches_of_input(options)
    for tensor in arguments.tensors():
        size = tensor.shape[0] if tensor.dim() else 1
        assert size % count == 0, (
            f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({size}) must be a multiple of "
            f"Options.deviceIterations({options.device_iterations}) * "
            f"(Options.replicationFactor({options.replication_factor}) / "
            f"Options.inputReplicaGrouping.input_group_size({options.input_group_size})) * "
            f"Options.Training.gradientAccumulation({options.Training.gradient_accumulation}) = {count} because it is "
            "used to calculate the batch size which will be executed on the device in any given iteration. For a full "
            "explanation see the batching semantics page of the documentation."
        )
    return arguments.with_tensors([micro_batch_of(tensor, 0, count) for tensor in arguments.tensors()])


def ipus_to_reserve(trace: Trace, options: Options) -> int:
    """Returns the number of IPUs, 0 on Graphcore's IPU Model. Raises Error if PopTorch would not compile."""
    validate(options.toDict())
    num_ipus = (max(trace.ipus, default=0) + 1) * int(options.replication_factor)
    if options.connection_type != ConnectionType.Never and not uses_ipu_model(options):
        num_ipus = round_up_num_ipus(num_ipus, bool(options.auto_round_num_ipus))
    trace.overlaps.check(trace.outputs, options)
    if is_pipelined(options):
        _check_stages(trace, options)
    pipelined = has_pipeline(trace, options)
    _check_return_periods(options, pipelined=pipelined)
    if pipelined:
        _check_placement(trace)
    if not pipelined and options._Popart.options.get("autoRecomputation") == int(popart.RecomputationType.Pipeline):
        raise cpp_error("Invalid RecomputationType::Pipeline in autoAnnotate when using implicit pipelining")
    if trace.mutates_buffers and options.replication_factor > 1 and options.broadcast_buffers:
        raise cpp_error(_BROADCAST_BUFFERS)
    if uses_ipu_model(options):
        _check_ipu_model(options)
        return 0
    return num_ipus


def check_clipping(trace: Trace, options: Options, max_grad_norm: float) -> None:
    """Raises Error if gradients are clipped in a pipeline whose accumulated gradients are handled serially.

    The check is PopART's (popart/willow transforms/clipweightgradientsbynorm.cpp:485-496).
    """
    schedule = options._Popart.options.get("accumulateOuterFragmentSettings.schedule")
    is_serial = schedule == int(popart.AccumulateOuterFragmentSchedule.Serial)
    if is_serial and max_grad_norm != float("inf") and has_pipeline(trace, options):
        raise error(
            "Incompatible accumulateOuterFragmentSchedule used with gradient clipping, "
            "SessionOptions::accumulateOuterFragmentSettings.schedule can not be set to "
            f"AccumulateOuterFragmentSchedule::Serial (max_grad_norm is {max_grad_norm})",
            "popart_exception",
        )


def check_named_buffers(options: Options, buffers: Iterable[str]) -> None:
    """Raises Error if Options.updatableNamedBuffers names a buffer that the model lacks."""
    for name in options._Popart.options.get("updatableNamedBuffers", ()):
        if name not in buffers:
            raise cpp_error(f"updatableNamedBuffers names {name}, but the model has no such buffer")


def _check_ipu_model(options: Options) -> None:
    """Raises Error for options that Graphcore's IPU Model lacks.

    Sources: CompilerImpl.cpp:640-666, docs/user_guide/device_iterations.py:6.
    """
    if options._Popart.options["instrumentWithHardwareCycleCounter"]:
        raise cpp_error("Cycle count logging is only supported on actual IPU hardware.")
    if options.connection_type == ConnectionType.Never:
        raise cpp_error("ConnectionType.Never / poptorch.Options.useOfflineIpuTarget not supported for the IPU model")
    if options.replication_factor > 1:
        raise cpp_error("Replicated top level graphs are not supported on the IPU model")


def checks_floating_point(options: Options) -> bool:
    """Tells whether floating-point exceptions are on; the IPU Model has none (popart popx/irlowering.cpp:2614-2628)."""
    if not options._Popart.options.get("enableFloatingPointChecks", False):
        return False
    if uses_ipu_model(options):
        logger.warning("Floating point checks cannot be enabled for non IPU devices")
        return False
    return True


def uses_ipu_model(options: Options) -> bool:
    """Tells whether the options, or else the environment, select Graphcore's IPU Model (Utils.cpp:30-55)."""
    if options.exists("use_model"):
        return bool(options.use_model)
    return any(int(os.environ.get(name, "0")) for name in ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL"))


def is_pipelined(options: Options) -> bool:
    """Tells whether the stages work at the same time."""
    strategy = options._execution_strategy
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def has_pipeline(trace: Trace, options: Options) -> bool:
    """Tells whether the model runs as a pipeline, which needs operations on several IPUs (Compiler.cpp:569-572)."""
    return is_pipelined(options) and len(trace.ipus) > 1


def _check_return_periods(options: Options, *, pipelined: bool) -> None:
    """Raises Error for OutputMode.EveryN in a pipeline, or with a period that does not divide the device iterations.

    The checks are PopART's (popart/willow dataflow.cpp:218-231, popx/irlowering.cpp:3185-3189).
    """
    if options.output_mode != OutputMode.EveryN:
        return
    period, iterations = options.output_return_period, options.device_iterations
    problem = ""
    if period > iterations:
        problem = "Return period must be <= to the number of batches per step"
    elif iterations % period:
        problem = "Return period must be a factor of the number of batches per step"
    elif pipelined:
        problem = "AnchorReturnType::EVERYN is not valid for pipelined models; use another OutputMode"
    if problem:
        raise error(f"{problem} (the period is {period}, deviceIterations is {iterations})", "popart_exception")


def _check_stages(trace: Trace, options: Options) -> None:
    """Raises Error unless G >= 2F-1 in training, D >= F in inference (Compiler.cpp:675-700)."""
    stages, forward = trace.num_stages, trace.num_forward_stages
    if trace.is_training and options.Training.gradient_accumulation < stages:
        raise cpp_error(
            "poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({stages}) when using poptorch.PipelinedExecution. Please note that a model with {forward} "
            f"pipeline stages in PopTorch will have an additional {stages - forward} stages when training."
        )
    if not trace.is_training and options.device_iterations < stages:
        raise cpp_error(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({stages}) when using PopTorch.PipelinedExecution."
        )


def _check_placement(trace: Trace) -> None:
    """Raises Error if a stage or a weight of a pipeline is on several IPUs.

    The checks are PopART's (popart/willow ir.cpp:640-665, transforms/pipeline.cpp:138-147).
    """
    for stage, ipus in trace.ipus_of_stages.items():
        if len(ipus) > 1:
            raise error(
                f"Ops have the same pipeline stage {stage}, but different virtual graph ids {sorted(ipus)}. All ops "
                "with the same pipeline stage must also have the same virtual graph id",
                "popart_exception",
            )
    for name, ipus in trace.ipus_of_weights.items():
        if len(ipus) > 1:
            raise error(
                f"Can not copy variable tensor {name} between virtual graphs when pipelining. All pipeline stages "
                "using this tensor should be on the same graph.",
                "popart_exception",
            )

"""Traces a model: runs it once on meta tensors, and records in a `Trace` what it does.

The model runs with its real shapes and dtypes, so that tracing costs no arithmetic and knows the types of the outputs.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vit_ipu.simulator import context
from vit_ipu.simulator.arithmetic.mixed_formats import MixedFormats
from vit_ipu.simulator.arithmetic.mode import chosen
from vit_ipu.simulator.arithmetic.replaced_formats import ReplacedFormats
from vit_ipu.simulator.dtypes import are_float64
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.options.strategies import StageManager
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.autograd_functions import (
    forward_gradients,
    hooked_parameters,
    warn_of_ignored_hook,
    without_checkpoints,
    without_hooks,
)
from vit_ipu.simulator.tracing.comparisons import Comparisons
from vit_ipu.simulator.tracing.device_names import DeviceNames, NewTensors
from vit_ipu.simulator.tracing.functions import initialised_as_in_torch_2_0
from vit_ipu.simulator.tracing.host_state import HostState
from vit_ipu.simulator.tracing.trace import Trace
from vit_ipu.simulator.weights import Weights, swapped_weights


def trace_model(
    model: nn.Module, weights: Weights, arguments: Arguments, manager: StageManager, is_training: bool
) -> Trace:
    """Runs `model` once on meta tensors shaped like one replica's `weights` and one micro-batch of `arguments`.

    Raises Error if the forward pass does something that PopTorch refuses.
    """
    trace = Trace(is_training)
    fill_trace(trace, model, weights, arguments, manager)
    return trace


def fill_trace(trace: Trace, model: nn.Module, weights: Weights, arguments: Arguments, manager: StageManager) -> None:
    """Runs `model` as `trace_model` does, and records its forward pass in `trace`."""
    is_training = trace.is_training
    _check_inputs(trace, arguments)
    for name in hooked_parameters(model) if is_training else ():
        warn_of_ignored_hook(f"hooks of {name}")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # inference tensors do not count changes
        stack.enter_context(torch.set_grad_enabled(is_training))
        trace.keeps_float64 = keeps_float64(weights)
        meta = weights.map(trace.meta_like)
        inputs = arguments.with_tensors([trace.meta_like(tensor) for tensor in arguments.tensors()])
        trace.begin(meta, inputs)
        stack.enter_context(swapped_weights(model, meta, trace.refuse))
        comparisons = Comparisons()
        stack.enter_context(_session_of(trace, manager, comparisons))
        state = HostState(model)
        _run_model(model, inputs, trace, comparisons)
        trace.host_changes = state.changes()
    trace.mutates_buffers = any(t._version for t in meta.tensors() if t.is_floating_point())


@contextmanager
def _session_of(trace: Trace, manager: StageManager, comparisons: Comparisons) -> Iterator[None]:
    """Reports to `trace` the blocks, losses and tensors that the model marks."""
    manager.on_begin = trace.begin_block
    session = context.Session(
        on_ipu=True,
        trace=trace,
        stage_manager=manager,
        on_loss=trace.mark_loss,
        on_body=comparisons.next_body,
    )
    try:
        with context.during(session):
            yield
    finally:
        manager.on_begin = None


def _run_model(model: nn.Module, inputs: Arguments, trace: Trace, comparisons: Comparisons) -> None:
    """Runs `model` under all modes and hooks that record what the model does."""
    recording_mode = trace.recording_mode()
    names = DeviceNames(torch.device("meta"))
    formats = ReplacedFormats({} if trace.keeps_float64 else {torch.float64: torch.float32}, trace.note_float64)
    with ExitStack() as stack:
        stack.enter_context(NewTensors(torch.device("meta")))
        stack.enter_context(context.unvalidated_distributions())
        stack.enter_context(saved_tensors_hooks(_saver(trace), lambda tensor: tensor))
        stack.enter_context(recording_mode)
        stack.enter_context(trace.function_mode(recording_mode))
        stack.enter_context(MixedFormats())
        stack.enter_context(comparisons)
        stack.enter_context(names)  # nearly the last, because the other modes look at the real devices
        stack.enter_context(formats)
        stack.enter_context(initialised_as_in_torch_2_0())
        stack.enter_context(without_checkpoints(trace.note_checkpoint))
        stack.enter_context(without_hooks(trace.note_hook))
        if trace.is_training:
            stack.enter_context(forward_gradients(trace.note_function))
        trace.outputs = model(*inputs.args, **inputs.kwargs)
    recording_mode.raise_if_unsupported()
    trace.graph.note_outputs(flatten(trace.outputs))
    trace.names_devices = names.used
    trace.comparisons = comparisons.answers if comparisons.used else None


def keeps_float64(weights: Weights) -> bool:
    """Tells whether a model of these weights computes in float64.

    PopTorch makes float64 float32 (Utils.cpp:141-151). With exact numerics, a model whose parameters are all float64 is
    an exception, by which training can be compared with training on the host to more digits than float32 has.
    """
    return not chosen().is_ipu and are_float64(weights.parameters.values())


def _check_inputs(trace: Trace, arguments: Arguments) -> None:
    for tensor in arguments.tensors():
        if 0 in tensor.shape:
            refused = cpp_error(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)}).")
            trace.refuse(refused, "input")
        trace.check_type(tensor, "input")
        if tensor.requires_grad:
            logger.warning(
                "Input tensor has requires_grad=True set. This tensor will be detached because backward pass via "
                "inputs is not supported."
            )


def _saver(trace: Trace) -> Callable[[Tensor], Tensor]:
    def save(tensor: Tensor) -> Tensor:
        trace.graph.save(tensor, len(trace.stage_ipus) - 1)
        return tensor.detach()  # an output that its own autograd graph kept would never be freed

    return save

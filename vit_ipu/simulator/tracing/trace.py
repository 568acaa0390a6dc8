"""Tracing as PopTorch does it: finds a model's stages, IPUs, loss, outputs and operations.

The model runs once on meta tensors, with its real shapes and dtypes, so that tracing costs no arithmetic. Rules
that a forward pass can break are checked here and in `dispatch_mode`, rules that options add in `compile_checks`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vit_ipu.simulator import context
from vit_ipu.simulator.arithmetic.mixed_formats import MixedFormats
from vit_ipu.simulator.arithmetic.mode import chosen
from vit_ipu.simulator.arithmetic.replaced_formats import ReplacedFormats
from vit_ipu.simulator.dtypes import are_float64
from vit_ipu.simulator.errors import Error, cpp_error
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.options.strategies import StageManager
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.autograd_functions import (
    forward_gradients,
    hooked_parameters,
    warn_of_ignored_backward,
    warn_of_ignored_hook,
    without_checkpoints,
    without_hooks,
)
from vit_ipu.simulator.tracing.comparisons import Answers, Comparisons
from vit_ipu.simulator.tracing.device_names import DeviceNames, NewTensors
from vit_ipu.simulator.tracing.dispatch_mode import RecordingMode, check_type
from vit_ipu.simulator.tracing.function_mode import FunctionMode
from vit_ipu.simulator.tracing.functions import initialised_as_in_torch_2_0
from vit_ipu.simulator.tracing.graph import Graph, Kind
from vit_ipu.simulator.tracing.host_state import Change, HostState
from vit_ipu.simulator.tracing.losses import makes_loss
from vit_ipu.simulator.tracing.overlaps import Overlaps
from vit_ipu.simulator.weights import Weights, swapped_weights

_MAKE_CONSTANTS = (torch.tensor, torch.as_tensor)


class LossId(NamedTuple):
    """Identifies a loss of a forward pass: the `number`-th loss of a torch function, or of identity_loss."""

    of_function: bool
    number: int


class _Loss(NamedTuple):
    """A loss, and the number of operations that had been recorded when the loss was made."""

    tensor: Tensor
    made_at: int


class Trace:
    """The record of one forward pass of the model."""

    def __init__(self, is_training: bool) -> None:
        self.is_training = is_training
        self._marked_losses: List[_Loss] = []
        """Losses that identity_loss marked."""
        self._function_losses: List[_Loss] = []
        """Losses that loss functions of torch returned."""
        self.graph = Graph()
        self.parameters: Set[str] = set()
        self.stage_ipus = [0]
        """The IPU of each forward stage: consecutive blocks on an IPU form one stage (CompilerImpl.cpp:478-495)."""
        self.uses_half = False
        self.keeps_float64 = False
        """Whether the model computes in float64, rather than in float32 as on an IPU."""
        self.asks_for_float64 = False
        """Whether the forward makes float64 tensors, which are float32 on an IPU."""
        self.names_devices = False
        """Whether the forward must run in `DeviceNames`."""
        self.autograd_functions: Set[Any] = set()
        """The torch.autograd.Functions that a training model applies."""
        self.hooks: Set[str] = set()
        """The kinds of hooks on gradients that the forward adds or meets."""
        self.has_checkpoints = False
        """Whether the forward uses torch.utils.checkpoint."""
        self.comparisons: Optional[Answers] = None
        """The answers of torch.equal, if the forward calls it."""
        self.mutates_buffers = False
        self.host_changes: List[Change] = []
        """The plain attributes of modules that the forward changes."""
        self.outputs: Any = None
        self.overlaps = Overlaps()
        self.ipus: Set[int] = set()
        """The IPUs that have operations."""
        self.ipus_of_weights: Dict[str, Set[int]] = {}
        self.ipus_of_stages: Dict[int, Set[int]] = {}
        """The IPUs of each stage, by the number that the execution strategy gives the stage."""
        self._ipu: Optional[int] = 0
        self._strategy_stage = 0
        self._names_of_weights: Dict[int, str] = {}

    def refuse(self, refused: Exception, subject: str = "") -> None:
        """Raises what PopTorch raises about a weight or an input; a trace that judges keeps it, and continues."""
        raise refused

    def recording_mode(self) -> RecordingMode:
        """Returns the mode that records and checks operations."""
        return RecordingMode(self.graph, self.place)

    def function_mode(self, recording_mode: RecordingMode) -> FunctionMode:
        """Returns the mode that checks calls of torch's functions."""
        return FunctionMode(recording_mode, self.note_call)

    def begin(self, weights: Weights, inputs: Arguments) -> None:
        """Records the weights and inputs that the model is about to run with."""
        self.uses_half = any(t.dtype == torch.float16 for t in weights.tensors() + inputs.tensors())
        self.overlaps.begin(inputs.tensors())
        self.parameters = set(weights.parameters)
        self._names_of_weights = {id(tensor): name for name, tensor in weights.items() if tensor.is_floating_point()}
        self._add_arguments(weights, inputs)

    def _add_arguments(self, weights: Weights, inputs: Arguments) -> None:
        """Adds weights and inputs to the graph.

        PopART has no integer variables: an integer buffer is a constant (JitDispatch.cpp, addParameter).
        """
        for name, tensor in weights.items():
            self.check_type(tensor, f"weight {name}")
            self.graph.add(tensor, Kind.WEIGHT if tensor.is_floating_point() else Kind.CONSTANT, name)
        for tensor in inputs.tensors():
            self.graph.add(tensor, Kind.INPUT)

    def check_type(self, tensor: Tensor, subject: str) -> None:
        """Refuses a weight or an input of a type that IPUs lack."""
        try:
            check_type(tensor)
        except Error as refused:
            self.refuse(refused, subject)

    def meta_like(self, tensor: Tensor) -> Tensor:
        """Returns a tensor on "meta" in the shape and the format that `tensor` has on an IPU."""
        dtype = torch.float32 if tensor.dtype == torch.float64 and not self.keeps_float64 else tensor.dtype
        return torch.empty_like(tensor, dtype=dtype, device="meta", requires_grad=False)

    def begin_block(self, stage: int, ipu: int) -> None:
        if ipu != self.stage_ipus[-1]:
            self.stage_ipus.append(ipu)
        self._ipu, self._strategy_stage = (ipu if ipu >= 0 else None), stage  # a phase's stage may lack an IPU

    def end_block(self) -> None:
        self._ipu = None

    def place(self) -> Tuple[int, int]:
        """Returns the forward stage and the IPU that an operation now belongs to. Raises Error outside all blocks."""
        if self._ipu is None:
            raise cpp_error("No active Block, all the ops must belong to a Block")
        self.ipus.add(self._ipu)
        self.ipus_of_stages.setdefault(self._strategy_stage, set()).add(self._ipu)
        return len(self.stage_ipus) - 1, self._ipu

    def checkpoint(self, tensors: Sequence[Tensor]) -> None:
        """Records a call of recomputationCheckpoint."""
        self.graph.checkpoint(tensors, len(self.stage_ipus) - 1)

    def note_computed(self, tensors: Sequence[Tensor]) -> None:
        """Records that the IPU computes these tensors, also if they look constant, as a branch's outputs may."""
        for tensor in tensors:
            self.graph.note_computed(tensor)

    def operation(self, function: Callable[..., Any], arguments: Any, result: Any) -> None:
        """Records that a function of torch has returned.

        A function that does nothing, such as dropout with p = 0, also belongs to a stage and an IPU.
        """
        if flatten(arguments):
            self.place()
        for tensor in flatten(result):
            self.uses_half |= tensor.dtype == torch.float16
        if makes_loss(function, *arguments) and isinstance(result, Tensor):
            self._function_losses.append(self._loss(result))

    def note_call(self, function: Callable[..., Any], arguments: Any, result: Any) -> None:
        """Records that the model has called a function of torch, and on which IPU the model uses a weight."""
        if function in _MAKE_CONSTANTS and result.is_meta:  # torch makes these without an operation
            self.graph.add(result, Kind.CONSTANT)
        if not flatten(result):
            return
        self.overlaps.use(arguments)
        self.operation(function, arguments, result)
        for tensor in flatten(arguments):
            name = self._names_of_weights.get(id(tensor))
            if name is not None:
                self.ipus_of_weights.setdefault(name, set()).add(self.stage_ipus[-1])

    def note_float64(self) -> None:
        """Records that the forward asks for float64."""
        self.asks_for_float64 = True

    def note_function(self, cls: Any) -> None:
        """Records a torch.autograd.Function, and warns about its backward the first time."""
        if cls not in self.autograd_functions:
            warn_of_ignored_backward(cls)
        self.autograd_functions.add(cls)

    def note_hook(self, kind: str) -> None:
        """Records a hook on gradients, and in training warns about each kind the first time."""
        if self.is_training and kind not in self.hooks:
            warn_of_ignored_hook(kind)
        self.hooks.add(kind)

    def note_checkpoint(self) -> None:
        """Records a call of torch.utils.checkpoint."""
        self.has_checkpoints = True

    def mark_loss(self, loss: Tensor) -> None:
        """Records a loss that the model marks by identity_loss."""
        self._marked_losses.append(self._loss(loss))

    def _loss(self, tensor: Tensor) -> _Loss:
        return _Loss(tensor, len(self.graph.operations))

    @property
    def num_forward_stages(self) -> int:
        return len(self.stage_ipus)

    @property
    def num_stages(self) -> int:
        """The number of stages, in training with the backward stages.

        The last forward stage is also the first backward stage.
        """
        return 2 * self.num_forward_stages - 1 if self.is_training else self.num_forward_stages

    def final_loss(self) -> LossId:
        """Returns the one loss that no other loss is computed from (RemoveSurplusIdentityLosses.cpp).

        Raises Error if there is not exactly one.
        """
        losses = {LossId(False, i): loss for i, loss in enumerate(self._marked_losses)}
        losses.update({LossId(True, i): loss for i, loss in enumerate(self._function_losses)})
        if not losses:
            raise cpp_error("Couldn't find a loss in graph!")
        others = list(losses.values())
        final = [loss_id for loss_id, (loss, made) in losses.items() if not self.graph.leads_to(loss, made, others)]
        if len(final) != 1:
            raise cpp_error(
                "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
                "poptorch.identity_loss."
            )
        return final[0]


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

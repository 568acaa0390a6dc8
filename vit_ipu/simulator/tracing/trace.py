"""The record of a forward pass, as PopTorch traces it: a model's stages, IPUs, loss, outputs and operations.

`trace_model` runs the model. Rules that a forward pass can break are checked here and in `dispatch_mode`, rules that
options add in `compile_checks`.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.errors import Error, cpp_error
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.autograd_functions import (
    warn_of_ignored_backward,
    warn_of_ignored_hook,
)
from vit_ipu.simulator.tracing.comparisons import Answers
from vit_ipu.simulator.tracing.dispatch_mode import RecordingMode, check_type
from vit_ipu.simulator.tracing.function_mode import FunctionMode
from vit_ipu.simulator.tracing.graph import Graph, Kind
from vit_ipu.simulator.tracing.host_state import Change
from vit_ipu.simulator.tracing.losses import makes_loss
from vit_ipu.simulator.tracing.overlaps import Overlaps
from vit_ipu.simulator.weights import Weights

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

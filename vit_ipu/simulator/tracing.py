"""What PopTorch learns of a model by tracing it: stages, IPUs, the loss, and the outputs.

The model runs once on meta tensors, with its real shapes and dtypes, so that tracing costs no arithmetic.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator import context
from vit_ipu.simulator.arguments import Arguments, flatten
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.strategies import StageManager
from vit_ipu.simulator.weights import Weights, borrowed

LOSS_FUNCTIONS: Set[Callable[..., Any]] = {
    getattr(F, name)
    for name in (
        "binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss "
        "hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss "
        "multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss "
        "soft_margin_loss triplet_margin_loss"
    ).split()
}


class LossId(NamedTuple):
    """Which loss of a forward pass is meant: the `number`-th of a torch function, or of identity_loss."""

    of_function: bool
    number: int


class Trace:
    """What one forward pass of the model did."""

    def __init__(self, is_training: bool) -> None:
        self.is_training = is_training
        self.losses: List[Tensor] = []  # marked by identity_loss
        self.function_losses: List[Tensor] = []  # returned by LOSS_FUNCTIONS
        self.ipus: Set[int] = set()
        self.num_ipu_switches = 0
        self.uses_half = False
        self.mutates_buffers = False
        self.outputs: Any = None
        self._ipu: Optional[int] = 0
        self._last_ipu = 0

    def begin_block(self, block: str, stage: int, ipu: int) -> None:
        if ipu != self._last_ipu:
            self.num_ipu_switches += 1
        self._ipu = self._last_ipu = ipu

    def end_block(self) -> None:
        self._ipu = None

    def operation(self, function: Callable[..., Any], result: Any) -> None:
        """An operation has run; it belongs to the block that is active."""
        if self._ipu is None:
            raise cpp_error("No active Block, all the ops must belong to a Block")
        self.ipus.add(self._ipu)
        for tensor in flatten(result):
            self.uses_half |= tensor.dtype == torch.float16
        if function in LOSS_FUNCTIONS and isinstance(result, Tensor):
            self.function_losses.append(result)

    @property
    def num_forward_stages(self) -> int:
        """Blocks that follow each other on an IPU are one stage (CompilerImpl.cpp:478-495)."""
        return self.num_ipu_switches + 1

    @property
    def num_stages(self) -> int:
        """Stages of training include the backward ones; the last forward stage is also the first backward one."""
        return 2 * self.num_forward_stages - 1 if self.is_training else self.num_forward_stages

    def final_loss(self) -> LossId:
        """The one loss that no other loss is computed from (RemoveSurplusIdentityLosses.cpp)."""
        losses = [(LossId(False, i), loss) for i, loss in enumerate(self.losses)]
        losses += [(LossId(True, i), loss) for i, loss in enumerate(self.function_losses)]
        if not losses:
            raise cpp_error("Couldn't find a loss in graph!")
        used: Set[Any] = set()
        for _, loss in losses:
            used |= _ancestors(loss.grad_fn)
        final = [loss_id for loss_id, loss in losses if loss.grad_fn not in used]
        if len(final) != 1:
            raise cpp_error(
                "Multiple independent losses found in graph. Graph must have one final loss. Wrap final graph loss in "
                "poptorch.identity_loss."
            )
        return final[0]


def trace_model(model: nn.Module, arguments: Arguments, manager: StageManager, is_training: bool) -> Trace:
    """Runs `model` once on meta tensors shaped like the first micro-batch of `arguments`."""
    trace = Trace(is_training)
    meta = Weights.of(model).map(lambda tensor: torch.empty_like(tensor, device="meta"))
    inputs = arguments.with_tensors([torch.empty_like(t, device="meta") for t in arguments.tensors()])
    trace.uses_half = any(t.dtype == torch.float16 for t in meta.tensors() + inputs.tensors())
    with borrowed(model, meta), torch.device("meta"), torch.set_grad_enabled(is_training):
        with context.tracing(trace, manager), _Operations(trace):
            trace.outputs = model(*inputs.args, **inputs.kwargs)
    trace.mutates_buffers = any(buffer._version for buffer in meta.buffers.values())
    return trace


class LossCatcher(TorchFunctionMode):
    """Collects what loss functions of torch return."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: List[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in LOSS_FUNCTIONS:
            self.losses.append(result)
        return result


class _Operations(TorchFunctionMode):
    """Reports each operation that makes a tensor to a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if flatten(result) and getattr(func, "__name__", "") != "__get__":
            self._trace.operation(func, result)
        return result


def _ancestors(node: Any) -> Set[Any]:
    """The autograd nodes that `node` was computed from, without itself."""
    found: Set[Any] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        for parent, _ in current.next_functions if current is not None else ():
            if parent is not None and parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found

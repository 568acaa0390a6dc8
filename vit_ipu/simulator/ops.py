"""Annotations of a model: blocks, losses and recomputation (python/ops.py).

They act while the simulator traces or runs a model; on the host they do nothing, as in PopTorch.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

from torch import Tensor, nn

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import error


class Block(nn.Module):
    """A context manager: the operations inside belong to one block."""

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id, self._ipu_id = user_id, ipu_id

    @staticmethod
    def useAutoId() -> None:
        """Numbers the blocks without an ID from 0, in the order in which they begin."""
        if context.stage_manager is not None:
            context.stage_manager.reset_auto_id()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begins a block that lasts until the next begins."""
        if context.stage_manager is not None:
            context.stage_manager.begin(user_id, ipu_id)

    def __enter__(self) -> None:
        Block.start(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if context.trace is not None:
            context.trace.end_block()


class _BlockHook:
    """The forward pre-hook by which BeginBlock begins a block."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id, self._ipu_id = user_id, ipu_id

    def __call__(self, module: nn.Module, args: Any) -> None:
        if context.stage_manager is None:
            return
        if self._user_id is None:
            self._user_id = context.stage_manager.next_auto_id()
        context.stage_manager.begin(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return "BeginBlock(user_id={}, ipu_id={})".format(self._user_id, self._ipu_id)


def BeginBlock(layer_to_call: Any, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Any:
    """Begins a block whenever `layer_to_call` is called, until another block begins; returns the layer."""
    if not isinstance(layer_to_call, nn.Module):
        if callable(layer_to_call):
            return _begin_block_of_function(layer_to_call, user_id, ipu_id)
        raise error("module is not an instance of torch.nn.Module or function.")
    if any(isinstance(hook, _BlockHook) for hook in layer_to_call._forward_pre_hooks.values()):
        raise error("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def _begin_block_of_function(
    function: Callable[..., Any], user_id: Optional[str], ipu_id: Optional[int]
) -> Callable[..., Any]:
    def begin(*args: Any, **kwargs: Any) -> Any:
        Block.start(user_id, ipu_id)
        return function(*args, **kwargs)

    return begin


def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable[..., Any]:
    """A decorator: the operations of the function belong to one block."""

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return wrapper

    return decorator


def removeBlocks(module: nn.Module) -> None:
    """Takes the annotations of BeginBlock off a module and all below it."""
    assert isinstance(module, nn.Module)
    for child in module.modules():
        hooks = child._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _BlockHook)]:
            del hooks[key]


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Marks `x`, reduced by "sum", "mean" or "none", as the loss to differentiate."""
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    loss = x.sum() if reduction == "sum" else x.mean() if reduction == "mean" else x.clone()
    context.mark_loss(loss)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Marks tensors that are kept for the backward pass rather than computed again; returns them."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        return type(tensors[0])(recomputationCheckpoint(*tensors[0]))
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    kept: List[Tensor] = [tensor.view_as(tensor) for tensor in tensors]
    return kept[0] if len(kept) == 1 else tuple(kept)


def nop(tensor: Tensor) -> Tensor:
    """Returns the tensor."""
    return tensor.view_as(tensor)


def isRunningOnIpu() -> bool:
    """Whether the simulator, rather than the host, is running the model."""
    return context.on_ipu

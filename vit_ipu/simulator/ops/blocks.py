"""Blocks: groups of a model's operations, and the IPUs on which the blocks run (python/ops.py:541-775).

Blocks have an effect while a model is traced; on the host they do nothing, as in PopTorch.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from torch import nn

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
        if context.current.stage_manager is not None:
            context.current.stage_manager.resetAutoId()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begins a block that lasts until the next block begins."""
        if context.current.stage_manager is not None:
            context.current.stage_manager.beginStage(user_id, ipu_id)

    def __enter__(self) -> None:
        Block.start(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if context.current.trace is not None:
            context.current.trace.end_block()


class LegacyBeginBlockFn(nn.Module):
    """Wraps a callable that is not a module, for BeginBlock: begins a block whenever the callable is called."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: Optional[str] = None, ipu_id: Optional[int] = None
    ) -> None:
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id, self._ipu_id = user_id, ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        self._user_id = _begin(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


class _BlockHook:
    """The forward pre-hook with which BeginBlock begins a block."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id, self._ipu_id = user_id, ipu_id

    def __call__(self, module: nn.Module, args: Any) -> None:
        self._user_id = _begin(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def _begin(user_id: Optional[str], ipu_id: Optional[int]) -> Optional[str]:
    """Begins a block and returns its ID; while a model is traced, a block without an ID gets a number."""
    if context.current.stage_manager is None:
        return user_id
    if user_id is None:
        user_id = context.current.stage_manager.nextAutoId()
    context.current.stage_manager.beginStage(user_id, ipu_id)
    return user_id


def BeginBlock(layer_to_call: Any, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Any:
    """Begins a block whenever `layer_to_call` is called, until another block begins; returns the layer."""
    if not isinstance(layer_to_call, nn.Module):
        if callable(layer_to_call):
            return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
        raise error("module is not an instance of torch.nn.Module or function.")
    if any(isinstance(hook, _BlockHook) for hook in layer_to_call._forward_pre_hooks.values()):
        raise error("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable[..., Any]:
    """Returns a decorator: the operations of the decorated function belong to one block."""

    def decorator(func: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return func(*args, **kwargs)

        return wrapper

    return decorator


def removeBlocks(module: nn.Module) -> None:
    """Removes the annotations of BeginBlock from a module and its submodules."""
    assert isinstance(module, nn.Module)
    for child in module.modules():
        hooks = child._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _BlockHook)]:
            del hooks[key]


class NameScope:
    """A context manager that prefixes the names of the operations inside; names have no effect in the simulator."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), "Parameter to NameScope must be a string"
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        pass

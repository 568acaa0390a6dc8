"""What a program adds to torch's autograd, as PopTorch records it: by the forward pass alone.

PopTorch records the operations of a forward pass, and PopART differentiates these operations, those of a
torch.autograd.Function too (poptorch/source/RequiresGrad.cpp). So `backward` of a Function and hooks on gradients never
run on an IPU, and torch.utils.checkpoint has no effect there: PopART decides what it computes again.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx, FunctionMeta, _SingleLevelFunction
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from vit_ipu.simulator.logs import logger


@contextmanager
def without_checkpoints(on_use: Optional[Callable[[], None]] = None) -> Iterator[None]:
    """Calls checkpointed parts of a model plainly inside the `with` block; `on_use` is told of each call.

    Programs import `checkpoint` under other names, so this replaces what torch's `checkpoint` itself uses.
    """

    def note() -> None:
        if on_use is not None:
            on_use()

    class CheckpointFunction:
        @staticmethod
        def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            note()
            return function(*args)

    def run(function: Callable[..., Any], preserve_rng_state: bool, *args: Any, **kwargs: Any) -> Any:
        note()
        return function(*args, **kwargs)

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        note()
        yield  # here, torch's `checkpoint` calls the function

    with ExitStack() as stack:
        for name, replacement in {
            "CheckpointFunction": CheckpointFunction,
            "_checkpoint_without_reentrant": run,  # of torch 2.0
            "_checkpoint_without_reentrant_generator": around,  # of torch 2.1 and later
            "_checkpoint_without_reentrant_generator_impl": around,  # of torch 2.14 and later
        }.items():
            if hasattr(checkpoint, name):
                stack.enter_context(_replaced(checkpoint, name, replacement))
        yield


@contextmanager
def forward_gradients(on_use: Optional[Callable[[Any], None]] = None) -> Iterator[None]:
    """Differentiates the forward pass of each Function inside the `with` block, also when `backward` runs later.

    `on_use` receives the class of each Function that the model applies. Functions of torch itself are left alone,
    because their `backward` is the derivative of their forward. Programs keep `Function.apply` under other names, and
    torch's `apply` is compiled; so this replaces what `apply` reads from the class.
    """
    nodes: Dict[Any, Any] = {}

    def read(cls: Any, name: str) -> Any:
        value = type.__getattribute__(cls, name)
        if name not in ("forward", "setup_context", "_backward_cls") or _is_of_torch(cls):
            return value
        if name == "setup_context":
            return _SingleLevelFunction.setup_context  # so that `apply` passes a context to the forward
        if name == "_backward_cls":
            if cls not in nodes:
                nodes[cls] = type(value.__name__, (_Derivative,), dict(vars(value)))
            return nodes[cls]
        if on_use is not None:
            on_use(cls)
        return lambda node, *args, **kwargs: _differentiable_forward(cls, node, args, kwargs)

    with _replaced(FunctionMeta, "__getattribute__", read):
        yield


@contextmanager
def without_hooks(on_use: Optional[Callable[[str], None]] = None) -> Iterator[None]:
    """Keeps hooks on gradients from running inside the `with` block, and those added there from running later.

    These are the hooks of tensors and the backward hooks of modules. `on_use` is told the kind of each hook.
    """

    def note(kind: str) -> None:
        if on_use is not None:
            on_use(kind)

    def never(add: Callable[..., RemovableHandle]) -> Callable[..., RemovableHandle]:
        def add_and_remove(tensor: Tensor, hook: Callable[..., Any]) -> RemovableHandle:
            note(f"Tensor.{add.__name__}")
            if not torch.is_grad_enabled():  # in inference, where torch refuses hooks, and PopTorch does not
                return RemovableHandle(OrderedDict())
            with torch._C.DisableTorchFunction():
                handle = add(tensor, hook)
            handle.remove()
            return handle

        return add_and_remove

    def no_hooks(module: nn.Module) -> Tuple[List[Any], List[Any]]:
        note(f"backward hooks of {type(module).__module__}.{type(module).__qualname__}")
        return [], []

    def no_pre_hooks(module: nn.Module) -> List[Any]:
        return no_hooks(module)[0]

    with ExitStack() as stack:
        for name in _TENSOR_HOOKS:
            stack.enter_context(_replaced(Tensor, name, never(getattr(Tensor, name))))
        stack.enter_context(_replaced(nn.Module, "_get_backward_hooks", no_hooks))
        stack.enter_context(_replaced(nn.Module, "_get_backward_pre_hooks", no_pre_hooks))
        yield


def hooked_parameters(model: nn.Module) -> List[str]:
    """Returns the names of the parameters whose gradients have hooks."""
    attributes = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [
        name
        for name, parameter in model.named_parameters()
        if any(getattr(parameter, attribute, None) for attribute in attributes)
    ]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute inside the `with` block, and removes it afterwards if `owner` had only inherited it."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


_TENSOR_HOOKS = [
    name for name in ("register_hook", "register_post_accumulate_grad_hook") if hasattr(Tensor, name)
]  # the second is in torch 2.1 and later


def _is_of_torch(cls: Any) -> bool:
    return str(type.__getattribute__(cls, "__module__")).partition(".")[0] == "torch"


class _Context(FunctionCtx):
    """The `ctx` that a forward pass receives; what it saves for `backward` is not used."""

    needs_input_grad: Tuple[bool, ...]


class _Derivative(BackwardCFunction):
    """The node of the autograd graph for a Function: differentiates the operations of the Function's forward."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]

    def apply(self, *gradients: Any) -> Any:
        """Returns the gradients of the inputs, and adds to those of weights that the forward uses directly."""
        pairs = [
            (output, gradient)
            for output, gradient in zip(self.outputs, gradients)
            if _needs_gradient(output) and gradient is not None
        ]
        if pairs:
            outputs, given = zip(*pairs)
            torch.autograd.backward(outputs, given)
        return tuple(value.grad if isinstance(value, Tensor) else None for value in self.inputs)


def _differentiable_forward(cls: Any, node: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Runs the forward pass of a Function with gradients, and leaves its inputs and outputs to the node."""
    node.inputs = [_own_leaf(value) for value in args]
    with torch.enable_grad():
        given = [value.clone() if _needs_gradient(value) else value for value in node.inputs]  # may change in place
        outputs = _plain_forward(cls, given, kwargs)
    for value, changed in zip(args, given):
        if _needs_gradient(changed) and changed._version:
            value.copy_(changed)
    node.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in node.outputs)
    return detached if isinstance(outputs, tuple) else detached[0]


def _own_leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _plain_forward(cls: Any, inputs: List[Any], kwargs: Dict[str, Any]) -> Any:
    """Calls a Function's forward in the style that the Function has, with a context or with `setup_context`."""
    forward, setup = (type.__getattribute__(cls, name) for name in ("forward", "setup_context"))
    context = _Context()
    context.needs_input_grad = tuple(map(_needs_gradient, inputs))
    if setup is _SingleLevelFunction.setup_context:
        return forward(context, *inputs, **kwargs)
    outputs = forward(*inputs, **kwargs)
    with torch.no_grad():
        setup(context, tuple(inputs), outputs)
    return outputs


def warn_of_ignored_backward(cls: Any) -> None:
    """Warns that an IPU trains with the derivative of a Function's forward, whatever its backward computes."""
    logger.warning(
        "%s.%s: PopTorch ignores backward() of a torch.autograd.Function and differentiates forward() instead, which "
        "gives another gradient unless backward() is the derivative of forward(); write the gradient with detach(), as "
        "in x + (hard(x) - x).detach() for a straight-through estimator",
        cls.__module__,
        cls.__qualname__,
    )


def warn_of_ignored_hook(kind: str) -> None:
    """Warns that an IPU trains without the hooks that a program has put on gradients."""
    logger.warning(
        "%s: PopTorch never runs autograd's backward, so hooks on gradients do not run on an IPU and gradients stay as "
        "they are; change a gradient in forward, as in factor * x + (x - factor * x).detach()",
        kind,
    )

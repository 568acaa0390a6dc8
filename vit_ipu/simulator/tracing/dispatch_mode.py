"""Watches torch's dispatcher while a model is traced: records each operation and raises PopTorch's errors.

The messages come from poptorch/source/dispatch_tracer (RegisterAtenOverloads.cpp, TypeInferenceHandler.cpp,
Tensor.cpp) and from ErrorOnUnsupportedAten.cpp.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.nested import flatten
from vit_ipu.simulator.tracing.argument_limits import check_arguments
from vit_ipu.simulator.tracing.flops import flops_of
from vit_ipu.simulator.tracing.graph import Graph, Kind, Operation, Value
from vit_ipu.simulator.tracing.library_ops import check_kernel, is_outside_torch, refusal
from vit_ipu.simulator.tracing.op_table import Verdict, is_part_of, takes_whole, verdict
from vit_ipu.simulator.tracing.shape_rules import rule_of, with_dtype_of_out

ITEM = (
    "aten::item is only supported in eager mode, but was intercepted in a static graph. This means an IPU to CPU copy "
    "was triggered before the end of the graph, for example by calling tensor.item(). Please ensure that any such "
    "copies are removed."
)
_ILLEGAL_MOVE = (
    'Illegal move to CPU (via `.to("cpu")`) when using the dispatcher. Instead, return this output as an IPU tensor.'
)
_NONZERO = (
    "Operations using aten::nonzero are unsupported because the output shape is determined by the tensor values. The "
    "IPU cannot support dynamic output shapes."
)
_TRIU = "torch.triu is only supported within constant expressions, for example torch.ones(3, 3).triu_()."

# Operations of autograd itself, and operations that only give a tensor another name.
_NOT_RECORDED = frozenset(("aten::detach", "aten::detach_", "aten::alias", "aten::lift_fresh", "aten::lift"))

# c10's names of scalar types.
_TYPE_NAMES = {
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.float16: "Half",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bool: "Bool",
    torch.bfloat16: "BFloat16",
    torch.complex32: "ComplexHalf",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
}
_MASK_TYPES = (torch.bool, torch.uint8)
UNSUPPORTED_TYPES = (torch.bfloat16, torch.complex32, torch.complex64, torch.complex128)


class RecordingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations; `place` returns the stage and IPU of the active block, or raises Error if there is none."""

    def __init__(self, graph: Graph, place: Callable[[], Tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.function = ""
        """The name of the torch function that the model is calling."""
        self._graph, self._place = graph, place
        self._unsupported: Set[str] = set()
        self._not_lowered: Set[str] = set()
        """Operations of other libraries that PopTorch records and has no counterpart for in PopART."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # torch 2.0.1 leaves function modes on in this method
            return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Runs, records and checks an operation. Raises Error for one that PopTorch refuses immediately."""
        name = func._schema.name
        tensors = flatten((args, kwargs))
        read = [tensor for tensor in tensors if tensor.is_meta]
        if read:
            _check_moves(name, args, kwargs, tensors)
        result = _run(func, args, kwargs, self.function)
        made = [tensor for tensor in flatten(result) if tensor.is_meta]
        for tensor in made:
            check_type(tensor)
            if name == "aten::lift_fresh":  # torch.tensor(...)
                self._graph.add(tensor, Kind.CONSTANT)
        if made and name not in _NOT_RECORDED:
            self._record(func, args, read, result, made)
        return result

    def _record(self, func: Any, args: Tuple[Any, ...], read: List[Tensor], result: Any, made: List[Tensor]) -> None:
        graph, name = self._graph, func._schema.name
        inputs = [graph.add(tensor, Kind.ACTIVATION) for tensor in read]  # an unknown tensor comes from a CPU op
        graph.is_random |= _is_random(func)
        constant = all(value.kind == Kind.CONSTANT for value in inputs) and not _is_random(func)
        outputs = [graph.add(tensor, Kind.CONSTANT if constant else Kind.ACTIVATION) for tensor in made]
        if constant:
            return
        for value in outputs:
            value.kind = Kind.ACTIVATION if value.kind == Kind.CONSTANT else value.kind
        self._check_supported(func, name, args)
        stage, ipu = self._place()
        graph.operations.append(
            Operation(
                full_name(func),
                stage,
                ipu,
                graph.num_segments - 1,
                _numbers(inputs),
                _numbers(outputs),
                flops_of(name, args, result),
            )
        )

    def _check_supported(self, func: Any, name: str, args: Sequence[Any]) -> None:
        """Collects operations without a handler, because PopTorch names them all at once.

        Raises Error for an operation that PopTorch refuses immediately.
        """
        if is_outside_torch(name):
            self.note_not_lowered(name)
            return
        if verdict(full_name(func)) == Verdict.UNSUPPORTED and not takes_whole(self.function):
            if name in ("aten::triu", "aten::triu_"):
                raise cpp_error(_TRIU)
            self.note_unsupported(name)
        check_arguments(name, args)

    def note_unsupported(self, name: str) -> None:
        """Keeps the name of an operation without a handler."""
        self._unsupported.add(name)

    def note_not_lowered(self, name: str) -> None:
        """Keeps the name of an operation from outside torch that PopTorch does not handle."""
        self._not_lowered.add(name)

    def raise_if_unsupported(self) -> None:
        """Raises Error if the model has used operations that PopTorch does not support."""
        if self._unsupported:
            raise unsupported_operations(self._unsupported)
        if self._not_lowered:
            raise refusal(", ".join(sorted(self._not_lowered)))


def unsupported_operations(names: Set[str]) -> Exception:
    """Returns the error that names the operations without a handler."""
    listed = ", ".join(sorted(names))
    return cpp_error(
        f"Unsupported ops found in compiled model: [{listed}]. Not all operations are supported yet by Graphcore's "
        "PyTorch compiler. If you believe any of these should be, please report this message to support@graphcore.ai."
    )


def raise_not_inferred(name: str) -> NoReturn:
    """Raises the Error for an operation whose output's shape depends on data."""
    raise cpp_error(
        f"Type inference failed for {name} because the operator doesn't have an implementation for the Meta backend."
    )


def check_type(tensor: Tensor) -> None:
    """Raises Error if IPUs lack the tensor's type."""
    if tensor.dtype in UNSUPPORTED_TYPES:
        raise cpp_error(f"Unsupported tensor input type from pytorch: {_TYPE_NAMES[tensor.dtype]}")


def _check_moves(name: str, args: Sequence[Any], kwargs: Dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Raises Error if a tensor leaves the IPU, or if a host tensor is used that was not moved to the IPU."""
    if name == "aten::_local_scalar_dense":
        raise cpp_error(ITEM)
    if name == "aten::_to_copy" and is_host(kwargs.get("device")):
        raise cpp_error(_ILLEGAL_MOVE)
    if name == "aten::copy_":
        if not args[0].is_meta:
            raise cpp_error(_ILLEGAL_MOVE)
        return
    for tensor in tensors:
        if not tensor.is_meta and tensor.dim() > 0:
            raise cpp_error(
                f"Expected an IPU tensor but got tensor(device={tensor.device}, shape={list(tensor.shape)}, "
                f"dtype={_TYPE_NAMES.get(tensor.dtype, tensor.dtype)}).\nConstant tensors should be "
                'moved explicitly to the IPU, via cpu_tensor.to("ipu").'
            )


def is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type != "meta"


def _run(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], function: str) -> Any:
    """Runs an operation, which the torch function named `function` has called."""
    name = full_name(func)
    on_ipu = any(tensor.is_meta for tensor in flatten((args, kwargs)))
    if on_ipu:
        _check_inferred(func, name, args, function)
    try:
        return func(*args, **with_dtype_of_out(name, kwargs))
    except NotImplementedError:
        if not on_ipu:
            raise
        rule = rule_of(name)
        if rule is None:
            raise_not_inferred(name)
        return rule(*args, **kwargs)


def _check_inferred(func: Any, name: str, args: Tuple[Any, ...], function: str) -> None:
    """Raises Error if PopTorch cannot infer the shape of an operation's result."""
    if is_outside_torch(name):
        check_kernel(func)
    if name in ("aten::nonzero", "aten::nonzero.out"):
        raise cpp_error(_NONZERO)
    if verdict(name) == Verdict.NOT_INFERRED and not is_part_of(name, function):
        raise_not_inferred(name)
    if name == "aten::index.Tensor" and any(index.dtype in _MASK_TYPES for index in flatten(args[1]) if index.is_meta):
        raise DynamicOutputShapeException(func)  # torch's own error, which PopTorch lets through


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def full_name(func: Any) -> str:
    """Returns the operation's name with its overload, as in "aten::add.Tensor"."""
    overload = func._schema.overload_name
    return f"{func._schema.name}.{overload}" if overload else func._schema.name


def _numbers(values: Sequence[Value]) -> Tuple[int, ...]:
    return tuple(dict.fromkeys(value.number for value in values))

"""Recorded operations of an IPU's float16, on float32 tensors that hold float16 values.

Each function computes what the dispatch mode of half_mode.py computes for the same operation, and draws as many random
numbers. Results are rounded where they are; nothing is converted to float16 and back.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import EXACT, MEMORY, HalfArithmetic, name_of, plan_of, written_by
from vit_ipu.simulator.arithmetic.rounding import to_nearest
from vit_ipu.simulator.nested import flatten, rebuild

Compute = Callable[[List[Tensor]], Sequence[Tensor]]
"""Returns the results of an operation, given its tensors."""

_HALF, _FLOATS = torch.float16, (torch.float16, torch.float32, torch.float64)
_WIDE = {_HALF: torch.float32, torch.float64: torch.float32}
_MM, _BMM = torch.ops.aten.mm.default, torch.ops.aten.bmm.default
_PRODUCTS = {"mm": _MM, "bmm": _BMM}
_PRODUCTS_AND_SUMS = {"addmm": _MM, "baddbmm": _BMM}
_GELU = ("gelu", "gelu_backward")
_STATISTICS = frozenset(
    "native_batch_norm _native_batch_norm_legit _batch_norm_with_update cudnn_batch_norm".split()
)  # they change running statistics, which older schemas do not declare
_THROUGH_FLOAT16 = ("convolution", "convolution_backward")
_BINDINGS: Dict[Any, Callable[..., Any]] = {
    **{
        getattr(torch.ops.aten, name).default: getattr(Tensor, name)
        for name in "detach expand permute t unsqueeze view".split()
    },
    **{getattr(torch.ops.aten, name).int: getattr(Tensor, name) for name in ("select", "transpose")},
    torch.ops.aten._unsafe_view.default: Tensor.view,
    **{getattr(torch.ops.aten, name).Tensor: getattr(torch, name) for name in "add mul div sub".split()},
    **{getattr(torch.ops.aten, name).default: getattr(torch, name) for name in "bmm clone mm".split()},
    torch.ops.aten.sum.dim_IntList: torch.sum,
}
"""Functions of torch that call an operation, and take their arguments several times faster."""


class NotRecordable(Exception):
    """A pass cannot be repeated by its operations alone."""


def is_view(func: Any) -> bool:
    """Tells whether an operation returns views of its inputs, and writes nothing."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def changed_by(func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> List[Tensor]:
    """Returns the tensors that an operation changes in place. Raises NotRecordable for running statistics."""
    if name_of(func) in _STATISTICS:
        raise NotRecordable(f"{func} changes running statistics")
    names = [(index, func._schema.arguments[index].name) for index in written_by(func)]
    return flatten([args[index] if index < len(args) else kwargs.get(name) for index, name in names])


def compute_of(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any], result: Any) -> Compute:
    """Returns the function of a recorded operation, whose `result` shows which results are float16."""
    read, results = flatten((args, kwargs)), flatten(result)
    if not any(tensor.dtype == _HALF for tensor in [*read, *results]):
        return _direct(_Call(func, args, kwargs))
    name = name_of(func)
    if name in _THROUGH_FLOAT16:
        return _through_float16(mode, func, args, kwargs)
    if name in _PRODUCTS:
        multiplied = _multiplication(mode, _PRODUCTS[name], args[0], args[1])
        return lambda tensors: (multiplied(*tensors),)
    if name in _PRODUCTS_AND_SUMS:
        return _product_and_sum(mode, _PRODUCTS_AND_SUMS[name], args, kwargs)
    if name in _GELU:
        kwargs = dict(kwargs, approximate="tanh")
    call = _Call(func, args, kwargs)
    if written_by(func):
        return _in_place(mode, call, changed_by(func, args, kwargs), read, is_copy=name == "copy_")
    if name == "_to_copy":
        is_rounded = args[0].dtype != _HALF and results[0].dtype == _HALF
        return _rounded(mode, call, results) if is_rounded else _direct(call)
    if name in MEMORY or is_view(func):
        return _direct(call)
    if name in EXACT and isinstance(result, Tensor):
        has_wide = any(tensor.dtype in _FLOATS and tensor.dtype != _HALF for tensor in read)
        return _nearest(call) if has_wide and result.dtype == _HALF else _direct(call)
    return _rounded(mode, call, results)


class _Call:
    """An operation on other tensors than the recorded ones."""

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
        self._func = _BINDINGS.get(func, func)
        self._args = [_WIDE.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args]
        self._kwargs = {n: _WIDE.get(v, v) if isinstance(v, torch.dtype) else v for n, v in kwargs.items()}
        count = len(flatten((args, kwargs)))
        self._are_first = all(isinstance(arg, Tensor) for arg in args[:count]) and len(args) >= count
        """Whether the tensors come before all other arguments."""
        self._others = self._args[count:]

    def __call__(self, tensors: List[Tensor]) -> Any:
        if self._are_first:
            return self._func(*tensors, *self._others, **self._kwargs)
        args, kwargs = rebuild((self._args, self._kwargs), tensors)
        return self._func(*args, **kwargs)


def _direct(call: _Call) -> Compute:
    return lambda tensors: _listed(call(tensors))


def _listed(result: Any) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else flatten(result)


def _rounded(mode: HalfArithmetic, call: _Call, results: Sequence[Tensor]) -> Compute:
    """Rounds the results that are float16."""
    round_, halves = mode.rounding.in_float32, [tensor.dtype == _HALF for tensor in results]
    if halves == [True]:
        return lambda tensors: (round_(_listed(call(tensors))[0]),)  # the others may be None, as of frozen weights

    def compute(tensors: List[Tensor]) -> Sequence[Tensor]:
        return [round_(value) if half else value for value, half in zip(_listed(call(tensors)), halves)]

    return compute


def _nearest(call: _Call) -> Compute:
    return lambda tensors: (to_nearest(call(tensors)).float(),)


def _in_place(
    mode: HalfArithmetic, call: _Call, changed: Sequence[Tensor], read: Sequence[Tensor], *, is_copy: bool
) -> Compute:
    """Rounds the float16 tensors that the operation changes, a copy only if its source is not float16."""
    places = [next(i for i, tensor in enumerate(read) if tensor is target) for target in changed]
    places = [place for place in places if read[place].dtype == _HALF]
    if is_copy and read[1].dtype == _HALF:
        places = []

    def compute(tensors: List[Tensor]) -> Sequence[Tensor]:
        result = call(tensors)
        for place in places:
            target = tensors[place]
            rounded = mode.rounding.in_float32(target)
            if rounded is not target:
                target.copy_(rounded)
        return _listed(result)

    return compute


def _multiplication(mode: HalfArithmetic, product: Any, left: Tensor, right: Tensor) -> Callable[..., Tensor]:
    """Returns the function of a product, whose result is rounded if `left` is float16."""
    if mode.partials.half_products and left.dtype == right.dtype == _HALF:
        return mode.partials.chunked_in_float32
    multiply, round_ = _BINDINGS[product], mode.rounding.in_float32
    if left.dtype != _HALF:
        return multiply
    return lambda *tensors: round_(multiply(*tensors))


def _product_and_sum(mode: HalfArithmetic, product: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Compute:
    multiplied, round_ = _multiplication(mode, product, args[1], args[2]), mode.rounding.in_float32
    is_half, alpha, beta = args[1].dtype == _HALF, kwargs.get("alpha", 1), kwargs.get("beta", 1)

    def compute(tensors: List[Tensor]) -> Sequence[Tensor]:
        added, left, right = tensors
        result = multiplied(left, right)
        result = result.add_(added) if alpha == beta == 1 else result * alpha + added * beta
        return (round_(result) if is_half else result,)

    return compute


def _through_float16(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Compute:
    """Converts to float16 and back, and leaves the operation to the dispatch mode's plan."""
    plan, dtypes = plan_of(func), [tensor.dtype for tensor in flatten((args, kwargs))]

    def compute(tensors: List[Tensor]) -> Sequence[Tensor]:
        narrow = [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes)]
        given, named = rebuild((list(args), kwargs), narrow)
        found = flatten(plan(mode, func, given, named))
        return [tensor.float() if tensor.dtype == _HALF else tensor for tensor in found]

    return compute

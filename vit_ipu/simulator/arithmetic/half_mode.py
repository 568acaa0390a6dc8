"""Float16 arithmetic of the simulated IPU: each operation runs in float32, and its result is rounded to float16.

A dispatch mode sees aten operations below autograd, forward and backward alike. Views and copies pass unchanged; any
other operation with a float16 input or output is computed in float32 and rounded. float32 takes the place of float64.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vit_ipu.simulator.arithmetic.mode import Numerics
from vit_ipu.simulator.arithmetic.products import Partials, convolution, convolution_backward
from vit_ipu.simulator.arithmetic.rounding import Rounding, to_nearest
from vit_ipu.simulator.nested import map_tensors
from vit_ipu.simulator.options.options import Options


@contextmanager
def undispatched() -> Iterator[None]:
    """Inside, functions and operations are torch's own."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


Plan = Callable[["HalfArithmetic", Any, Sequence[Any], Dict[str, Any]], Any]

_HALF, _FLOATS = torch.float16, (torch.float32, torch.float64)

# Operations that move values without changing them.
MEMORY = frozenset(
    "cat stack clone contiguous index index_select gather embedding flip roll repeat select_backward slice_backward "
    "empty empty_like empty_strided new_empty new_empty_strided zeros_like ones_like new_zeros new_ones _unsafe_view "
    "unsafe_split unsafe_chunk unsafe_split_with_sizes _local_scalar_dense take tril triu im2col".split()
)
# Operations whose results are float16 values if the inputs are: rounding would change nothing.
EXACT = frozenset(
    "relu neg abs maximum minimum max min amax amin threshold_backward masked_fill where sign floor ceil round "
    "max_pool2d_with_indices max_pool2d_with_indices_backward sort topk scatter constant_pad_nd".split()
)
# The index of the input that alone decides the result's format (half_float_test.py of PopTorch).
_FOLLOWS = {
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "native_layer_norm": 0, "native_layer_norm_backward": 0,
    "native_group_norm": 0, "native_group_norm_backward": 0, "native_batch_norm": 0, "native_batch_norm_backward": 0,
    "_native_batch_norm_legit": 0, "_native_batch_norm_legit_no_training": 0, "cudnn_batch_norm": 0,
    "cudnn_batch_norm_backward": 0, "batch_norm_backward": 0, "_batch_norm_with_update": 0,
}  # fmt: skip


class HalfArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that computes with float16 tensors as an IPU does."""

    def __init__(self, rounding: Rounding, partials: Partials) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounding, self.partials = rounding, partials

    @classmethod
    def of(cls, options: Options, numerics: Numerics, *, checked: bool = False) -> HalfArithmetic:
        """Builds the mode from the options' partials types, stochastic rounding and random seed.

        With `checked`, overflow raises Error.
        """
        popart = options._Popart.options
        seed = int(options.random_seed) if options.exists("random_seed") else None
        rounding = Rounding(
            stochastic=bool(popart.get("enableStochasticRounding", False)),
            seed=seed,
            checked=checked,
        )
        partials = Partials(
            half_products=popart.get("partialsTypeMatMuls") == "half",
            half_convolutions=popart.get("convolutionOptions", {}).get("partialsType") == "half",
            chunk=numerics.partials_chunk,
            rounding=rounding,
        )
        return cls(rounding, partials)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        return plan_of(func)(self, func, args, kwargs or {})

    def round(self, result: Any) -> Any:
        """Returns a result with its float32 tensors rounded."""
        return map_tensors(result, lambda tensor: self.rounding(tensor) if tensor.dtype in _FLOATS else tensor)


_PLANS: Dict[Any, Plan] = {}


def plan_of(func: Any) -> Plan:
    """Returns the plan for an operation, chosen by its name and by the aliases in its schema."""
    plan = _PLANS.get(func)
    if plan is None:
        plan = _PLANS[func] = _new_plan(func)
    return plan


def name_of(func: Any) -> str:
    """Returns an operation's name without namespace and overload."""
    return func._schema.name.split("::")[1]


def written_by(func: Any) -> List[int]:
    """Returns the positions of the arguments that an operation changes in place."""
    arguments = enumerate(func._schema.arguments)
    return [index for index, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _new_plan(func: Any) -> Plan:
    schema, name, written = func._schema, name_of(func), written_by(func)
    if name in _SPECIAL:
        return _SPECIAL[name]
    if written:
        return _in_place([(index, schema.arguments[index].name) for index in written])
    if name in MEMORY or any(result.alias_info is not None for result in schema.returns):
        return _direct
    follows = _FOLLOWS.get(name)
    return _computed(follows=follows, is_exact=name in EXACT)


def _direct(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    if kwargs.get("dtype") == torch.float64:
        kwargs = dict(kwargs, dtype=torch.float32)
    return func(*args, **kwargs)


class _Formats:
    """The formats of an operation's inputs; scalars yield to tensors with dimensions, as in torch."""

    def __init__(self) -> None:
        self.half = self.wide = self.half_dims = self.wide_dims = False

    def widened(self, value: Any) -> Any:
        """Returns a float16 input in float32 and any other input unchanged; records the input's format."""
        if isinstance(value, Tensor):
            dtype = value.dtype
            if dtype == _HALF:
                self.half = True
                self.half_dims = self.half_dims or value.dim() > 0
                return value.float()
            if dtype in _FLOATS:
                self.wide = True
                self.wide_dims = self.wide_dims or value.dim() > 0
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            return [self.widened(part) for part in value]
        return value

    @property
    def result_is_half(self) -> bool:
        return not self.wide_dims if self.half_dims else self.half and not self.wide


def _computed(*, follows: Optional[int], is_exact: bool) -> Plan:
    """Returns a plan that computes in float32, and rounds if torch's result, or the input `follows`, is float16."""

    def plan(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        formats = _Formats()
        wide_args = [formats.widened(arg) for arg in args]
        requested = kwargs.get("dtype")
        if requested in (_HALF, torch.float64):
            kwargs = dict(kwargs, dtype=torch.float32)
        wide_args = [torch.float32 if arg is _HALF else arg for arg in wide_args]
        result = func(*wide_args, **{name: formats.widened(value) for name, value in kwargs.items()})
        if requested is not None:
            is_half = requested == _HALF
        elif follows is not None:
            is_half = args[follows].dtype == _HALF
        else:
            is_half = formats.result_is_half
        if not is_half:
            return result
        if is_exact and isinstance(result, Tensor) and result.dtype == torch.float32:
            return to_nearest(result)
        return mode.round(result)

    return plan


def _in_place(written: List[Tuple[int, str]]) -> Plan:
    """Returns a plan that writes to float32 copies, and then rounds these into the operation's float16 tensors."""

    def plan(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        formats = _Formats()
        wide_args = [formats.widened(arg) for arg in args]
        wide_kwargs = {name: formats.widened(value) for name, value in kwargs.items()}
        result = func(*wide_args, **wide_kwargs)
        targets: List[Tuple[Any, Any]] = [
            (args[i], wide_args[i]) if i < len(args) else (kwargs.get(name), wide_kwargs.get(name))
            for i, name in written
        ]
        for target, wide in targets:
            if target is not wide and isinstance(target, Tensor):
                target.copy_(mode.rounding(wide))
                if result is wide:
                    result = target
        return result

    return plan


# ------------------------------------------------------------------------------- special operations


def _to_copy(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Rounds if the conversion is to float16."""
    requested = kwargs.get("dtype")
    if requested == torch.float64:
        return func(*args, **dict(kwargs, dtype=torch.float32))
    if requested != _HALF or args[0].dtype == _HALF:
        return func(*args, **kwargs)
    return mode.rounding(func(*args, **dict(kwargs, dtype=torch.float32)))


def _copy_into(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Rounds the source only if it is not float16 yet.

    Autograd copies a gradient, or takes the tensor itself, depending on whether Python's garbage collector has already
    released the gradient: if a mere copy drew random bits, later roundings would depend on the garbage collector.
    """
    target, source = args[:2]
    if target.dtype != _HALF or source.dtype == _HALF:
        return func(*args, **kwargs)
    return _rounded_copy(mode, func, args, kwargs)


_rounded_copy = _in_place([(0, "self")])


def _gelu(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Computes GELU in its tanh form in every case (poplibs include/popnn/NonLinearityDef.hpp:24-30)."""
    return _plain(mode, func, args, dict(kwargs, approximate="tanh"))


_plain = _computed(follows=None, is_exact=False)


def _product(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    left, right = args[:2]
    if left.dtype != _HALF and right.dtype != _HALF:
        return func(*args, **kwargs)
    result = mode.partials.product(func, left, right)
    return mode.rounding(result) if left.dtype == _HALF else result


def _product_and_sum(product: Callable[..., Any]) -> Plan:
    """Returns a plan for the product and then the sum: two operations, as PopART decomposes a Gemm."""

    def plan(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        added, left, right = args[:3]
        if left.dtype != _HALF and right.dtype != _HALF:
            return func(*args, **kwargs)
        result = mode.partials.product(product, left, right)
        if left.dtype == _HALF:
            result = mode.rounding(result).float()
        result = result * kwargs.get("alpha", 1) + added.float() * kwargs.get("beta", 1)
        return mode.rounding(result) if left.dtype == _HALF else result

    return plan


def _convolution(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    image, weight, bias = args[:3]
    if image.dtype != _HALF and weight.dtype != _HALF:
        return func(*args, **kwargs)
    is_half = image.dtype == _HALF
    result = convolution(mode.partials, image, weight, *args[3:])
    if bias is not None:
        result = mode.rounding(result).float() if is_half else result
        result = result + bias.float().reshape(-1, *[1] * (image.dim() - 2))
    return mode.rounding(result) if is_half else result


def _convolution_backward(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    if all(tensor.dtype != _HALF for tensor in args[:3]):
        return func(*args, **kwargs)
    return mode.round(convolution_backward(mode.partials, *args))


def _batch_norm(mode: HalfArithmetic, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Also rounds the running statistics, which the operation writes to although older schemas do not declare it."""
    formats = _Formats()
    wide = [formats.widened(arg) for arg in args]
    result = func(*wide, **kwargs)
    for original, statistic in zip(args[3:5], wide[3:5]):
        if isinstance(original, Tensor) and original is not statistic:
            original.copy_(mode.rounding(statistic))
    return mode.round(result) if args[0].dtype == _HALF else result


_SPECIAL: Dict[str, Plan] = {
    "_to_copy": _to_copy,
    "copy_": _copy_into,
    "gelu": _gelu,
    "gelu_backward": _gelu,
    "mm": _product,
    "bmm": _product,
    "addmm": _product_and_sum(torch.ops.aten.mm.default),
    "baddbmm": _product_and_sum(torch.ops.aten.bmm.default),
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_batch_norm_with_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
}

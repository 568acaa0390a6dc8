"""The operations `torch.ops.poptorch.*` (dispatch_tracer/RegisterAtenOverloads.cpp:886-1000).

Arguments are those of PopTorch's schemas. Programs call some of these operations directly, such as `push_name_scope` in
a forward hook. Operations that only make sense in pairs, around code that PopTorch captures, raise NotImplementedError
on the IPU and name the public function.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.enums import OverlapMode
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.ops import ctc, host_ops, markers, overlap, points, print_tensor, slices

_REDUCTIONS = ("sum", "mean", "none")
_FLOAT_FORMATS = ("auto", "fixed", "scientific", "none")
_TYPES = {
    "BOOL": torch.bool,
    "DOUBLE": torch.float64,
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
}


def begin_ipu_block(stage_id: int, phase_id: int, ipu_id: int) -> None:
    """Begins a block of a stage on an IPU while a model is traced."""
    if context.current.trace is not None:
        context.current.trace.begin_block(stage_id, ipu_id)


def end_ipu_block() -> None:
    """Ends the block that has begun."""
    if context.current.trace is not None:
        context.current.trace.end_block()


def push_name_scope(name: str) -> None:
    """Does nothing: names of operations have no effect in the simulator."""


def pop_name_scope() -> None:
    """Does nothing, like `push_name_scope`."""


def set_attribute(attribute: str, key: str, value: str) -> None:
    """Does nothing: attributes of PopART's operations do not change the computation."""


def clear_attribute(attribute: str, key: str) -> None:
    """Does nothing, like `set_attribute`."""


def ipu_print_tensor(tensor: Tensor, title: str, print_gradient: int, *style: Any) -> Tensor:
    """Returns the tensor and prints it on the IPU.

    `style` holds the remaining arguments of poptorch.ipu_print_tensor, with float_format as its number.
    """
    threshold, edge_items, width, digits, float_format, *marks = style
    name = _FLOAT_FORMATS[float_format]
    numbers = threshold, edge_items, width, digits
    return print_tensor.ipu_print_tensor(tensor, title, bool(print_gradient), *numbers, name, *marks)


def set_overlap_for_input(t: Tensor, mode: str) -> Tensor:
    """Marks an input of the model; `mode` is a value of poptorch.OverlapMode."""
    return overlap.set_overlap_for_input(t, OverlapMode(mode))  # type: ignore[no-any-return]


def set_overlap_for_output(t: Tensor, mode: str) -> Tensor:
    """Marks an output of the model; `mode` is a value of poptorch.OverlapMode."""
    return overlap.set_overlap_for_output(t, OverlapMode(mode))  # type: ignore[no-any-return]


def recomputation_checkpoint(tensor: Tensor) -> Tensor:
    """Marks a tensor to keep for the backward pass; returns the tensor."""
    return markers.recomputationCheckpoint(tensor)  # type: ignore[no-any-return]


def identity_loss(x: Tensor, reduction: int) -> Tensor:
    """Marks `x` as the loss; `reduction` is 0 for the sum, 1 for the mean and 2 for neither."""
    if reduction not in range(len(_REDUCTIONS)):
        raise cpp_error(f"torch.ops.poptorch.identity_loss: reduction {reduction} does not exist; use 0, 1 or 2")
    return markers.identity_loss(x, _REDUCTIONS[reduction])


def internal_cast(tensor: Tensor, dtype: str) -> Tensor:
    """Returns the tensor in the format that PopART calls `dtype`.

    On the host, PopTorch returns float32 for "FLOAT16" and "FLOAT32", and else the tensor as it is
    (RegisterAtenOverloads.cpp:776-792).
    """
    if not context.current.on_ipu:
        return tensor.to(torch.float32) if dtype in ("FLOAT16", "FLOAT32") else tensor
    if dtype not in _TYPES:
        raise cpp_error(f"torch.ops.poptorch.internal_cast: dtype {dtype!r} does not exist; use one of {list(_TYPES)}")
    return tensor.to(_TYPES[dtype])


def custom_operation(
    inputs: List[Tensor],
    name: str,
    domain: str,
    domain_version: int,
    num_outputs: int,
    outputs: List[Tensor],
    attributes: str,
) -> List[Tensor]:
    """Calls a PopART operation written in C++, like poptorch.custom_op."""
    return host_ops.custom_op(tuple(inputs), name, domain, domain_version, tuple(outputs))


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int, beam_width: int, top_paths: int
) -> Tuple[Tensor, ...]:
    """Returns the likeliest label sequences, like poptorch.ctc_beam_search_decoder."""
    return tuple(ctc.ctc_beam_search_decoder(probs, lengths, blank, beam_width, top_paths))


def _in_pairs(name: str, instead: str, *, returns_first: bool) -> Callable[..., Any]:
    """Returns a function that has no effect on the host, where it returns its first argument or nothing."""

    def run(*args: Any) -> Any:
        if context.current.on_ipu:
            raise NotImplementedError(f"torch.ops.poptorch.{name} is not simulated on the IPU: use {instead}")
        return args[0] if returns_first else None

    return run


_SCHEMAS = """
    begin_ipu_block(int stage_id, int phase_id, int ipu_id) -> ();
    begin_multi_conv() -> ();
    call_cpu_op(Tensor[] inputs, str name) -> ();
    clear_attribute(str attribute, str key) -> ();
    ctc_beam_search_decoder(Tensor probs, Tensor lengths, int blank, int beam_width, int top_paths) -> (Tensor,
        Tensor, Tensor);
    custom_operation(Tensor[] inputs, str name, str domain, int domain_version, int num_outputs, Tensor[] outputs,
        str attributes) -> Tensor[];
    dynamic_slice(Tensor self, int dim, Tensor start, int size, int step) -> Tensor;
    dynamic_update(Tensor self, Tensor src, int dim, Tensor start, int size) -> Tensor;
    end_cpu_op(Tensor[] output) -> Tensor[];
    end_for_loop(Tensor[] outputs, Tensor[] inputs, int trip_count) -> Tensor[];
    end_if_block(Tensor[] outputs, Tensor condition) -> Tensor[];
    end_ipu_block() -> ();
    end_multi_conv(float[]? available_memory_proportions, int[]? partials_types, int? plan_type, int?
        per_conv_reserved_tiles, float? cycle_back_off, int[]? enableConvDithering) -> ();
    fps(Tensor src, int[] ptr, float ratio, bool random_start) -> Tensor;
    identity_loss(Tensor x, int reduction) -> Tensor;
    internal_cast(Tensor self, str dtype) -> Tensor;
    ipu_print_tensor(Tensor self, str title, int print_gradient, int summarize_threshold, int edge_items, int
        max_line_width, int digits, int float_format, str separator, str open_bracket, str close_bracket) -> Tensor;
    nearest(Tensor x, Tensor y, Tensor batch_x, Tensor batch_y) -> Tensor;
    nearest_batch_list(Tensor x, Tensor y, int[] batch_x, int[] batch_y) -> Tensor;
    nop(Tensor self) -> Tensor;
    optimizer_group(int group, Tensor[] inputs) -> ();
    pop_name_scope() -> ();
    push_name_scope(str name) -> ();
    recomputation_checkpoint(Tensor self) -> Tensor;
    set_attribute(str attribute, str key, str value) -> ();
    set_available_memory(Tensor t, float mem) -> Tensor;
    set_matmul_serialization(Tensor matmul, str mode, int factor, bool keep_precision) -> Tensor;
    set_overlap_for_input(Tensor t, str mode) -> Tensor;
    set_overlap_for_output(Tensor t, str mode) -> Tensor;
    start_else_block(Tensor[] outputs_true) -> ();
    start_for_loop(Tensor[] inputs) -> ();
    start_if_block(Tensor condition) -> ()
"""

_PAIRS: Dict[str, str] = {
    "start_for_loop": "poptorch.for_loop",
    "end_for_loop": "poptorch.for_loop",
    "start_if_block": "poptorch.cond",
    "start_else_block": "poptorch.cond",
    "end_if_block": "poptorch.cond",
    "begin_multi_conv": "poptorch.MultiConv",
    "end_multi_conv": "poptorch.MultiConv",
    "call_cpu_op": "poptorch.CPU",
    "end_cpu_op": "poptorch.CPU",
    "set_matmul_serialization": "poptorch.serializedMatMul",
    "optimizer_group": "the optimizer given to poptorch.trainingModel",
}
"""Operations that only work in pairs, or for a complete model, with the public function to use instead."""

_SINGLE: Sequence[Callable[..., Any]] = (
    begin_ipu_block,
    clear_attribute,
    ctc_beam_search_decoder,
    custom_operation,
    end_ipu_block,
    identity_loss,
    internal_cast,
    ipu_print_tensor,
    pop_name_scope,
    push_name_scope,
    recomputation_checkpoint,
    set_attribute,
    set_overlap_for_input,
    set_overlap_for_output,
    slices.dynamic_slice,
    slices.dynamic_update,
    markers.nop,
    markers.set_available_memory,
    points.fps,
    points.nearest,
)
_FUNCTIONS: Dict[str, Callable[..., Any]] = {function.__name__: function for function in _SINGLE}
_FUNCTIONS["nearest_batch_list"] = points.nearest


class Operation:
    """An operation, which takes the arguments of its schema by position or by name; `default` is its only overload."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self.__name__ = schema.name.partition("::")[2]
        self._names = [argument.name for argument in schema.arguments]
        instead = _PAIRS.get(self.__name__)
        if instead is None:
            self._run = _FUNCTIONS[self.__name__]
        else:
            self._run = _in_pairs(self.__name__, instead, returns_first=bool(schema.returns))
        self.default = self

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the operation. Raises RuntimeError, as torch does, if the arguments are not those of the schema."""
        given = {**dict(zip(self._names, args)), **kwargs}
        missing = [name for name in self._names if name not in given]
        count = len(args) + len(kwargs)
        if missing:
            raise self._refusal(f"is missing value for argument {missing[0]!r}")
        if count > len(self._names):
            raise self._refusal(f"expected at most {len(self._names)} argument(s) but received {count} argument(s)")
        return self._run(*(given[name] for name in self._names))

    def _refusal(self, problem: str) -> Exception:
        return RuntimeError(f"{self._schema.name}() {problem}. Declaration: {self._schema}")


class Namespace:
    """The operations as attributes, as `torch.ops.poptorch` has them."""

    def __init__(self) -> None:
        for schema in " ".join(_SCHEMAS.split()).split("; "):
            operation = Operation(torch._C.parse_schema(f"poptorch::{schema}"))
            setattr(self, operation.__name__, operation)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"torch.ops.poptorch has no operation {name!r}")

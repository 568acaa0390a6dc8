"""Loops and branches on the IPU (python/ops.py:158-268). Both are for inference only.

While a model is traced, the body of a loop runs once, and both bodies of a condition run. When the model runs, the
body of a loop runs `count` times, and one body of a condition runs. On the host, PopTorch runs the body of a loop once,
whatever the count.
"""

from __future__ import annotations

from typing import Any, Callable, List, Sequence

from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.nested import as_list

_LARGEST_COUNT = 2**31 - 1
_NOT_A_LIST_OF_TENSORS = "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. "


def for_loop(count: int, body: Callable[..., Any], inputs: List[Tensor]) -> List[Tensor]:
    """Calls `body` `count` times, each time with the body's previous outputs, and returns the last outputs.

    Raises ValueError if `inputs` is not a list of tensors. Raises Error in training, and if the body's outputs differ
    from its inputs in number, shape or dtype.
    """
    if not isinstance(inputs, list):
        raise ValueError(_NOT_A_LIST_OF_TENSORS + "(Object is not list)")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                _NOT_A_LIST_OF_TENSORS + f"(Object contained in list at index {index} is not torch.tensor)"
            )
    _check_count(count)
    carried = [tensor.clone() for tensor in inputs]  # the body may change its inputs in place
    if not context.current.on_ipu:
        return as_list(body(*carried))
    run = context.current.next_body()
    if context.current.trace is not None:
        with run():
            return _traced_loop(body, carried)
    for _ in range(count):
        with run():
            carried = [tensor.clone() for tensor in as_list(body(*carried))]
    return carried


def _check_count(count: int) -> None:
    if not isinstance(count, int):
        raise RuntimeError(
            "poptorch::end_for_loop() Expected a value of type 'int' for argument 'trip_count' but instead found type "
            f"'{type(count).__name__}'."
        )
    if not 0 <= count <= _LARGEST_COUNT:
        raise cpp_error(f"poptorch.for_loop: a count of {count} is not between 0 and {_LARGEST_COUNT}")


def _traced_loop(body: Callable[..., Any], inputs: List[Tensor]) -> List[Tensor]:
    expected = [(tensor.shape, tensor.dtype) for tensor in inputs]
    outputs = as_list(body(*inputs))
    if context.current.trace is not None and context.current.trace.is_training:
        raise cpp_error("poptorch.for_loop() is only supported in inference.")
    if len(outputs) != len(inputs):
        raise cpp_error(
            f"poptorch.for_loop: the body must return as many tensors as it takes: it takes {len(inputs)} and returns "
            f"{len(outputs)}"
        )
    for index, (output, (shape, dtype)) in enumerate(zip(outputs, expected)):
        if output.shape != shape or context.current.device_dtype(output.dtype) != context.current.device_dtype(dtype):
            raise cpp_error(
                f"poptorch.for_loop: output {index} of the body is {output.dtype} of shape {list(output.shape)}, but "
                f"its input is {dtype} of shape {list(shape)}"
            )
    if context.current.trace is not None:
        context.current.trace.note_computed(outputs)
    return outputs


def cond(
    condition: Tensor,
    then_body: Callable[..., Any],
    then_inps: List[Tensor],
    else_body: Callable[..., Any],
    else_inps: List[Tensor],
) -> List[Tensor]:
    """Returns a list of the outputs of `then_body(*then_inps)` if `condition` is true, else of `else_body(*else_inps)`.

    Raises ValueError if the inputs are not lists. Raises Error in training, and if the bodies' outputs do not
    correspond.
    """
    if not isinstance(then_inps, list) or not isinstance(else_inps, list):
        raise ValueError(
            "poptorch.cond expects then_inps and else_inps tensors to be a list of tensors. (Object is not list)"
        )
    if not context.current.on_ipu:
        return as_list(then_body(*then_inps) if condition else else_body(*else_inps))
    then_run, else_run = context.current.next_body(), context.current.next_body()
    if context.current.trace is None:
        with then_run() if condition else else_run():
            return as_list(then_body(*_clones(then_inps)) if condition else else_body(*_clones(else_inps)))
    with then_run():
        outputs = as_list(then_body(*_clones(then_inps)))
    with else_run():
        other_outputs = as_list(else_body(*_clones(else_inps)))
    if context.current.trace.is_training:
        raise cpp_error("poptorch.cond() is only supported in inference.")
    _check_branches(outputs, other_outputs)
    context.current.trace.note_computed(other_outputs)
    return other_outputs


def _check_branches(outputs: Sequence[Tensor], other_outputs: Sequence[Tensor]) -> None:
    if len(outputs) != len(other_outputs):
        raise cpp_error(
            "poptorch.cond: then_body and else_body must return the same number of tensors: they return "
            f"{len(outputs)} and {len(other_outputs)}"
        )
    for index, (output, other) in enumerate(zip(outputs, other_outputs)):
        if other.dim() == 0:
            raise cpp_error(
                "`else` branch output has an empty shape, so adding a reshape op to the `then` branch to achieve "
                "shapes identity is not possible!"
            )
        if output.shape != other.shape and output.numel() == other.numel():
            raise NotImplementedError(
                f"poptorch.cond is not simulated if PopTorch reshapes then_body's outputs: {list(output.shape)} to "
                f"{list(other.shape)}"
            )
        if output.shape != other.shape or context.current.device_dtype(output.dtype) != context.current.device_dtype(
            other.dtype
        ):
            raise cpp_error(
                f"poptorch.cond: output {index} is {output.dtype} of shape {list(output.shape)} from then_body, but "
                f"{other.dtype} of shape {list(other.shape)} from else_body"
            )


def _clones(values: Sequence[Any]) -> List[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]

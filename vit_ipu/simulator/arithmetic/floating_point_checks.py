"""Floating-point exceptions of the simulated IPU (Options.Precision.enableFloatingPointExceptions).

PopART enables the exceptions for invalid operations, division by zero and overflow (popart
willow/src/popx/irlowering.cpp:2615-2620; what PopTorch promises: python/options.py:118-140). The simulator sees whole
operations of torch: an operation raises if its result is infinite or NaN where its inputs are not. So it misses an
overflow inside an operation whose result is finite, which an IPU may notice.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vit_ipu.simulator.errors import Error, error
from vit_ipu.simulator.nested import flatten

_COMPARISONS = frozenset("eq ne lt le gt ge".split())

# Operations whose results are not computed, and _ctc_loss, which returns logarithms of zero besides the loss.
_UNCHECKED = frozenset(
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ _ctc_loss".split()
)
_KINDS: Dict[str, Callable[[Tensor], Tensor]] = {"an infinity": torch.isinf, "NaN": torch.isnan}


class FloatingPointChecks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that raises Error for the operations that raise a floating-point exception on an IPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in _UNCHECKED:
            return func(*args, **kwargs)
        inputs = _Inputs(args, kwargs, position_by_position=torch.Tag.pointwise in func.tags)
        if name.rstrip("_") in _COMPARISONS and inputs.have(torch.isnan):
            raise floating_point_exception(f"{func} compares NaN")
        if func._schema.is_mutable:
            inputs.mark_all()  # before the operation overwrites them
        result = func(*args, **kwargs)
        for tensor in flatten(result):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                for kind, test in _KINDS.items():
                    if inputs.lack(test, test(tensor)):
                        raise floating_point_exception(f"{func} makes {kind} of inputs without")
        return result


class _Inputs:
    """The floating-point inputs of an operation, and where they are infinite or NaN."""

    def __init__(self, args: Any, kwargs: Dict[str, Any], *, position_by_position: bool) -> None:
        self._values = list(_floats((args, list(kwargs.values()))))
        self._by_position = position_by_position
        self._marks: Dict[Callable[[Tensor], Tensor], Sequence[Tensor]] = {}

    def mark_all(self) -> None:
        """Finds the infinite and NaN inputs."""
        for test in _KINDS.values():
            self._marked(test)

    def have(self, test: Callable[[Tensor], Tensor]) -> bool:
        """Tells whether an input has an element for which `test` is true."""
        return any(bool(mark.any()) for mark in self._marked(test))

    def lack(self, test: Callable[[Tensor], Tensor], found: Tensor) -> bool:
        """Tells whether `found`, of a result's shape, has an element that no input accounts for.

        An input accounts for the same position of an elementwise operation's result, and for all of another result.
        """
        for mark in self._marked(test):
            found = found & ~(mark if self._by_position else mark.any())
        return bool(found.any())

    def _marked(self, test: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        if test not in self._marks:
            self._marks[test] = [test(value) for value in self._values]
        return self._marks[test]


def _floats(arguments: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors, and the infinite and NaN numbers, of an operation's arguments."""
    for value in arguments:
        if isinstance(value, (list, tuple)):
            yield from _floats(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            yield value
        elif isinstance(value, float) and not math.isfinite(value):
            yield torch.tensor(value)


def floating_point_exception(problem: str) -> Error:
    """Returns the error of a program that stops at a floating-point exception; its type is Poplar's, as far as known.

    PopTorch passes Poplar's error on (popart_compiler/source/Compiler.cpp:1901-1943), whose text is not public.
    """
    return error(
        f"Floating-point exception: {problem}; mend the operation, or turn off "
        "Options.Precision.enableFloatingPointExceptions",
        "poplar_application_runtime_error",
    )

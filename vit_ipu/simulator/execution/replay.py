"""Recorded operations of a pass, and their replay.

A replay computes the same bits as the dispatch mode of half_mode.py without autograd, without the model's Python, and
without conversions between float16 and float32: float16 tensors are float32 tensors that hold float16 values.
"""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, NamedTuple, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic, name_of
from vit_ipu.simulator.arithmetic.half_steps import Compute, NotRecordable, changed_by, compute_of, is_view
from vit_ipu.simulator.nested import flatten

Results = Tuple[List[Tensor], List[Optional[Tensor]]]
"""The outputs of a micro-batch, and the gradients of the trained weights; None for a weight without one."""
_HALF = torch.float16
_OF_SHAPES = ("is_same_size",)
"""Operations whose answers are the same in every pass."""


class Call(NamedTuple):
    """An operation, as the dispatcher called it."""

    function: Any
    args: Sequence[Any]
    kwargs: Dict[str, Any]
    result: Any


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps all operations, and their tensors, whose addresses then stay theirs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: List[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        with torch._C.DisableTorchFunction():  # torch 2.0.1 leaves function modes on in this method
            result = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, result))
        return result


class _Step(NamedTuple):
    """An operation of a replay: its tensors are the values of slots."""

    compute: Compute
    read: Tuple[int, ...]
    written: Tuple[int, ...]
    freed: Tuple[int, ...]
    """Slots that nothing reads after the step."""
    is_view: bool
    """Whether the operation computes nothing."""


class Replay:
    """Recorded operations on slots, which hold tensors."""

    def __init__(self, half: HalfArithmetic, calls: Sequence[Call], inputs: Sequence[Tensor], results: Results) -> None:
        """Raises NotRecordable if an operation cannot be repeated without its Python."""
        self._half = half
        self._slots = _Slots()
        self._inputs = [self._slots.add_input(tensor) for tensor in inputs]
        self._steps: List[_Step] = []
        for call in calls:
            self._add(call)
        self._outputs = [self._result(tensor) for tensor in results[0]]
        self._gradients = [None if tensor is None else self._result(tensor) for tensor in results[1]]
        self._steps = _freeing(_needed(self._steps, self._kept()), self._kept())
        self.refresh()

    def _add(self, call: Call) -> None:
        slots, read = self._slots, flatten((call.args, call.kwargs))
        results = flatten(call.result)
        if name_of(call.function) in _OF_SHAPES:
            return
        if not results:
            raise NotRecordable(f"{call.function} returns no tensor")
        for tensor in changed_by(call.function, call.args, call.kwargs):
            if tensor.dtype == _HALF and not slots.is_inside(tensor):
                raise NotRecordable(f"{call.function} changes a float16 tensor of the model or of its caller")
        of_read = tuple(slots.of(tensor) for tensor in read)
        if is_view(call.function) and [slots.find(tensor) for tensor in results] == [of_read[0]]:
            return  # the same tensor once more
        compute = compute_of(self._half, call.function, call.args, call.kwargs, call.result)
        if is_view(call.function) and all(slot in slots.constants for slot in of_read):
            values = compute([slots.constants[slot] for slot in of_read])
            slots.constants.update({slots.add(tensor): value for tensor, value in zip(results, values)})
        else:
            written = tuple(slots.add(tensor) for tensor in results)
            self._steps.append(_Step(compute, of_read, written, (), is_view(call.function)))

    def _result(self, tensor: Tensor) -> Tuple[int, torch.dtype]:
        return self._slots.of(tensor), tensor.dtype

    def _kept(self) -> List[int]:
        results = [*self._outputs, *(found for found in self._gradients if found is not None)]
        return [slot for slot, _ in results] + list(self._slots.constants)

    def refresh(self) -> None:
        """Takes over the values of float16 tensors from outside, such as the weights."""
        self._slots.refresh()

    def run(self, inputs: Sequence[Tensor]) -> Results:
        """Returns the outputs and the gradients of a micro-batch."""
        values: List[Any] = [None] * len(self._slots)
        for slot, constant in self._slots.constants.items():
            values[slot] = constant
        for slot, tensor in zip(self._inputs, inputs):
            values[slot] = tensor.float() if tensor.dtype == _HALF else tensor
        for compute, read, written, freed, _ in self._steps:
            for slot, value in zip(written, compute([values[slot] for slot in read])):
                values[slot] = value
            for slot in freed:
                values[slot] = None
        outputs = [values[slot].to(dtype, copy=True) for slot, dtype in self._outputs]
        return outputs, [None if of is None else values[of[0]].to(of[1]) for of in self._gradients]


class _Slots:
    """The numbers of the tensors of a recording. Tensors with the same memory, shape and strides are one."""

    def __init__(self) -> None:
        self._count = 0
        self.constants: Dict[int, Tensor] = {}
        """The tensors that are the same in every replay: those from outside, and views of them."""
        self._numbers: Dict[Hashable, int] = {}
        self._inside: Set[int] = set()
        """The storages that recorded operations made."""
        self._of_inputs: Set[int] = set()
        self._of_constants: Set[int] = set()
        self._widened: List[Tuple[Tensor, Tensor]] = []
        """The float16 tensors from outside, and their values in float32."""

    def __len__(self) -> int:
        return self._count

    def add(self, tensor: Tensor) -> int:
        """Returns a new slot for a result; an earlier tensor with the same memory and shape has the same value."""
        if _storage(tensor) not in self._of_inputs | self._of_constants:
            self._inside.add(_storage(tensor))
        self._numbers[_key(tensor)] = self._count
        self._count += 1
        return self._count - 1

    def add_input(self, tensor: Tensor) -> int:
        """Returns a new slot for an input of the pass."""
        self._of_inputs.add(_storage(tensor))
        return self.add(tensor)

    def find(self, tensor: Tensor) -> Optional[int]:
        """Returns the slot of a tensor, None if it has none."""
        return self._numbers.get(_key(tensor))

    def of(self, tensor: Tensor) -> int:
        """Returns the slot of a tensor; one from outside becomes a constant. Raises NotRecordable for a hidden view."""
        number = self.find(tensor)
        if number is not None:
            return number
        if _storage(tensor) in self._inside | self._of_inputs:
            raise NotRecordable("a view was made without an operation")
        self._of_constants.add(_storage(tensor))
        slot = self.add(tensor)
        self.constants[slot] = tensor.detach()
        if tensor.dtype == _HALF:
            if not tensor.is_contiguous():
                raise NotRecordable("a weight in float16 is not contiguous")
            self.constants[slot] = tensor.detach().float()
            self._widened.append((tensor.detach(), self.constants[slot]))
        return slot

    def is_inside(self, tensor: Tensor) -> bool:
        """Tells whether a recorded operation made the memory of a tensor."""
        return _storage(tensor) in self._inside

    def refresh(self) -> None:
        """Takes over the values of float16 tensors from outside."""
        for given, constant in self._widened:
            constant.copy_(given)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _key(tensor: Tensor) -> Hashable:
    memory = _storage(tensor), tensor.storage_offset()
    return (*memory, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _needed(steps: Sequence[_Step], kept: Sequence[int]) -> List[_Step]:
    """Returns the steps without views that nothing reads; other steps count as roundings even then."""
    read = set(kept)
    found: List[_Step] = []
    for step in reversed(steps):
        if not step.is_view or not read.isdisjoint(step.written):
            read.update(step.read)
            found.append(step)
    return found[::-1]


def _freeing(steps: Sequence[_Step], kept: Sequence[int]) -> List[_Step]:
    """Returns the steps, each with the slots that it is the last to read or to write."""
    seen = set(kept)
    found: List[_Step] = []
    for step in reversed(steps):
        last = {*step.read, *step.written} - seen
        seen |= last
        found.append(step._replace(freed=tuple(sorted(last))))
    return found[::-1]

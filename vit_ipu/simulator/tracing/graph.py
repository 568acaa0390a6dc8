"""The operations of one forward pass as torch's dispatcher runs them: their inputs, outputs, FLOPs and saved values.

A value is a storage: a tensor, its views and the results of in-place operations on the tensor are the same value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from torch import Tensor

from vit_ipu.simulator.dtypes import in_32_bits
from vit_ipu.simulator.tracing.flops import Flops


class Kind(Enum):
    """The origin of a value."""

    INPUT = "input"
    WEIGHT = "weight"
    CONSTANT = "constant"  # depends on neither inputs nor weights: folded on the host
    ACTIVATION = "activation"


@dataclass
class Value:
    """A storage on an IPU; `num_bytes` is its size on the IPU, which holds 64-bit types in 32 bits."""

    number: int
    kind: Kind
    num_bytes: int
    num_elements: int
    name: str = ""  # of a weight or buffer
    requires_grad: bool = False


@dataclass(frozen=True)
class Operation:
    """An operation of the forward pass.

    `name` includes the overload, `inputs` and `outputs` are numbers of values, and `segment` is the number of
    checkpoints before the operation.
    """

    name: str
    stage: int
    ipu: int
    segment: int
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    flops: Flops


@dataclass(frozen=True)
class Saved:
    """A value that autograd keeps for the backward pass of an operation of `stage`, after `position` operations."""

    value: int
    stage: int
    position: int


@dataclass
class Graph:
    """All values and operations of a forward pass, in order, and the values that autograd keeps."""

    values: List[Value] = field(default_factory=list)
    operations: List[Operation] = field(default_factory=list)
    saved: List[Saved] = field(default_factory=list)
    checkpoints: Set[Tuple[int, int]] = field(default_factory=set)  # (stage, value)
    outputs: Set[int] = field(default_factory=set)
    num_segments: int = 1
    is_random: bool = False
    """Whether an operation draws random numbers."""
    _numbers: Dict[int, int] = field(default_factory=dict)
    _storages: List[Any] = field(default_factory=list)  # kept alive, so that no new storage gets an old address

    def add(self, tensor: Tensor, kind: Kind, name: str = "") -> Value:
        """Returns the value of a tensor, which is new unless the tensor's storage is known."""
        storage = tensor.untyped_storage()
        number = self._numbers.get(storage._cdata)
        if number is None:
            number = self._numbers[storage._cdata] = len(self.values)
            self._storages.append(storage)
            self.values.append(Value(number, kind, _bytes_on_ipu(tensor, storage.nbytes()), tensor.numel(), name))
        value = self.values[number]
        value.requires_grad |= tensor.requires_grad
        return value

    def find(self, tensor: Tensor) -> Optional[Value]:
        """Returns the value of a tensor, or None if the tensor has not been added."""
        number = self._numbers.get(tensor.untyped_storage()._cdata)
        return None if number is None else self.values[number]

    def is_constant(self, tensor: Tensor) -> bool:
        """Tells whether the host knows a tensor's values when it compiles."""
        value = self.find(tensor) if tensor.is_meta else None
        return not tensor.is_meta or (value is not None and value.kind == Kind.CONSTANT)

    def note_computed(self, tensor: Tensor) -> None:
        """Records that the IPU computes a tensor, also if the tensor looks constant."""
        value = self.find(tensor)
        if value is not None and value.kind == Kind.CONSTANT:
            value.kind = Kind.ACTIVATION

    def save(self, tensor: Tensor, stage: int) -> None:
        """Records that autograd keeps `tensor`."""
        value = self.find(tensor) if tensor.is_meta else None
        if value is not None:
            self.saved.append(Saved(value.number, stage, len(self.operations)))

    def checkpoint(self, tensors: Iterable[Tensor], stage: int) -> None:
        """Records that the tensors are kept rather than computed again."""
        found = [self.find(tensor) for tensor in tensors]
        self.checkpoints |= {(stage, value.number) for value in found if value is not None}
        self.num_segments += 1

    def note_outputs(self, tensors: Iterable[Tensor]) -> None:
        """Records that the tensors leave the IPU."""
        found = [self.find(tensor) for tensor in tensors if tensor.is_meta]
        self.outputs = {value.number for value in found if value is not None}

    def leads_to(self, start: Tensor, position: int, ends: Iterable[Tuple[Tensor, int]]) -> bool:
        """Tells whether any tensor of `ends` is computed from `start`.

        `position` and the numbers in `ends` count the operations that had been recorded when a tensor was made.
        """
        origin = self.find(start)
        goals: Dict[int, Set[int]] = {}
        for tensor, made in ends:
            goal = self.find(tensor)
            if goal is not None and made > position:
                goals.setdefault(made, set()).add(goal.number)
        reached = {origin.number} if origin is not None else set()
        for index in range(position, max(goals, default=position)):
            operation = self.operations[index]
            if reached.intersection(operation.inputs):
                reached.update(operation.outputs)
            if reached & goals.get(index + 1, set()):
                return True
        return False


def _bytes_on_ipu(tensor: Tensor, num_bytes: int) -> int:
    return num_bytes if in_32_bits(tensor.dtype) == tensor.dtype else num_bytes // 2

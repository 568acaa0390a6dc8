"""Bytes of activations that live at once on a stage, for one micro-batch, from the order of the stage's operations.

In the forward pass, a value lives from the operation that makes it to the last operation that reads it, or to the end
if autograd keeps the value. The backward pass runs through the operations in reverse: a value that autograd keeps for
an operation is freed after that operation, and the gradient of a value lives as long as the value itself did in the
forward pass. With recomputation, only the values that arrive at the stage and the stage's checkpoints are kept; each
segment between checkpoints is run again, keeping all its values, before the segment's backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

Span = Tuple[int, int, int]  # bytes, first and last operation


@dataclass
class Life:
    """The life of one value on one stage; operations are counted from the stage's first operation."""

    num_bytes: int
    birth: int
    death: int
    kept: bool  # even with recomputation
    has_gradient: bool
    saved_at: Dict[int, int] = field(default_factory=dict)
    """By segment, the first operation for whose backward pass autograd keeps the value."""


class Working(NamedTuple):
    """The most bytes of activations that live at once."""

    without_recomputation: int
    with_recomputation: int


def working_memory(lives: Sequence[Life], segments: Sequence[int], *, training: bool) -> Working:
    """Returns the most bytes that live at once; `segments`: the segment of each operation of the stage, in order."""
    length = len(segments)
    if not training:
        plain = _peak([(life.num_bytes, life.birth, life.death) for life in lives], length)
        return Working(plain, plain)
    return Working(peak_keeping_all(lives, length), peak_recomputing(lives, segments))


def peak_keeping_all(lives: Sequence[Life], length: int) -> int:
    """Returns the most bytes that live at once in training without recomputation; the stage has `length` operations."""
    end = length - 1
    forward = [(life.num_bytes, life.birth, end if life.saved_at else life.death) for life in lives]
    backward = [(life.num_bytes, min(life.saved_at.values()), end) for life in lives if life.saved_at]
    return max(_peak(forward, length), _peak(backward + _gradients(lives), length))


def peak_recomputing(lives: Sequence[Life], segments: Sequence[int]) -> int:
    """Returns the most bytes that live at once in training with recomputation."""
    length = len(segments)
    bounds = _bounds(segments)
    forward = [(life.num_bytes, life.birth, length - 1 if life.kept else life.death) for life in lives]
    again: List[Span] = []
    backward = _gradients(lives)
    for life in lives:
        if life.kept:
            again.append((life.num_bytes, 0, length - 1))
            backward.append((life.num_bytes, 0, length - 1))
            continue
        for segment, first_use in life.saved_at.items():
            start, end = bounds[segment]
            again.append((life.num_bytes, max(life.birth, start), end))
            backward.append((life.num_bytes, first_use, end))
        if not life.saved_at:
            again.append((life.num_bytes, life.birth, life.death))
    return max(_peak(spans, length) for spans in (forward, again, backward))


def _gradients(lives: Iterable[Life]) -> List[Span]:
    return [(life.num_bytes, life.birth, life.death) for life in lives if life.has_gradient]


def _bounds(segments: Sequence[int]) -> Dict[int, Tuple[int, int]]:
    """Returns the first and the last operation of each segment."""
    bounds: Dict[int, Tuple[int, int]] = {}
    for index, segment in enumerate(segments):
        bounds[segment] = bounds.get(segment, (index, index))[0], index
    return bounds


def _peak(spans: Iterable[Span], length: int) -> int:
    """Returns the largest sum of bytes at any operation."""
    change = [0] * (length + 1)
    for num_bytes, first, last in spans:
        change[max(first, 0)] += num_bytes
        change[last + 1] -= num_bytes
    return max(accumulate(change))

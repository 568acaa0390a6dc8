"""Updates of many weights as one long weight: starting an operation can take longer than the operation does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.updates.rules import Variable

_MOST_ON_HOST = 1 << 17
"""Elements of a long weight on the host, whose update so stays in the processor's caches."""


def joinable(variables: Dict[str, Variable]) -> List[List[str]]:
    """Returns the names of the variables in groups that have the same scalars and formats and are not too long."""
    groups: Dict[Any, List[str]] = {}
    for name, variable in variables.items():
        scalars = tuple(sorted(variable.scalars.values.items())), tuple(sorted(variable.scalars.variable))
        formats = variable.weight.dtype, tuple((key, tensor.dtype) for key, tensor in variable.state.items())
        steps = tuple(float(tensor) for tensor in variable.state.values() if tensor.dim() == 0)
        groups.setdefault((scalars, formats, steps), []).append(name)
    return [part for names in groups.values() for part in _parts(names, variables)]


def _parts(names: List[str], variables: Dict[str, Variable]) -> List[List[str]]:
    """Splits names so that the weights of each part together are not too long; on a GPU, longer is faster."""
    parts: List[List[str]] = [[]]
    length = 0
    for name in names:
        weight = variables[name].weight
        if parts[-1] and not weight.is_cuda and length + weight.numel() > _MOST_ON_HOST:
            parts.append([])
            length = 0
        parts[-1].append(name)
        length += weight.numel()
    return parts


def place_side_by_side(tensors: List[Tensor]) -> None:
    """Moves tensors of one format into one piece of memory, in order, so that joining them copies nothing."""
    long = torch.cat([tensor.detach().flatten() for tensor in tensors])
    for tensor, piece in zip(tensors, torch.split(long, [tensor.numel() for tensor in tensors])):
        tensor.data = piece.view_as(tensor)


def _in_one_piece(tensors: List[Tensor]) -> Optional[Tensor]:
    """Returns the tensors as one, or None if they do not lie side by side."""
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return None
        end += tensor.numel() * tensor.element_size()
    length = (end - first.data_ptr()) // first.element_size()
    if first.storage_offset() + length > first.untyped_storage().nbytes() // first.element_size():
        return None  # neighbours by chance
    return first.detach().as_strided((length,), (1,))


@contextmanager
def joined(variables: List[Variable]) -> Iterator[Variable]:
    """Yields one variable whose weight and state are those of all; copies them back after the body.

    State without dimensions, such as a count of steps, must be equal in all.
    """
    first = variables[0]
    if len(variables) == 1:
        yield first._replace(weight=first.weight.flatten(), state=_flat(first.state))
        return
    of_all = {key: [variable.state[key] for variable in variables] for key in first.state}
    copied: List[Tuple[Tensor, List[Tensor]]] = []

    def long(parts: List[Tensor]) -> Tensor:
        found = _in_one_piece(parts)
        if found is None:
            found = torch.cat([part.flatten() for part in parts])
            copied.append((found, parts))
        return found

    weight = long([variable.weight for variable in variables])
    state = {key: parts[0].clone() if parts[0].dim() == 0 else long(parts) for key, parts in of_all.items()}
    yield first._replace(weight=weight, state=state)
    for tensor, parts in copied:
        _copy_back(tensor, parts)
    for key, tensor in state.items():
        if tensor.dim() == 0:
            for part in of_all[key]:
                part.copy_(tensor)


def _flat(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    return {key: tensor if tensor.dim() == 0 else tensor.view(-1) for key, tensor in state.items()}


def _copy_back(long: Tensor, parts: List[Tensor]) -> None:
    """Copies a long tensor into the tensors that it was joined from."""
    pieces = [piece.view_as(part) for piece, part in zip(torch.split(long, [part.numel() for part in parts]), parts)]
    copy_all = getattr(torch, "_foreach_copy_", None)  # newer than torch 2.0
    if copy_all is not None:
        copy_all(parts, pieces)
        return
    for part, piece in zip(parts, pieces):
        part.copy_(piece)

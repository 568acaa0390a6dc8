"""Updates of many weights as one long weight: starting an operation can take longer than the operation does."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

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


@contextmanager
def joined(variables: List[Variable]) -> Iterator[Variable]:
    """Yields one variable whose weight and state are those of all; copies them back after the body.

    State without dimensions, such as a count of steps, must be equal in all.
    """
    first = variables[0]
    if len(variables) == 1:
        yield first._replace(weight=first.weight.flatten(), state=_flat(first.state))
        return
    weight = torch.cat([variable.weight.flatten() for variable in variables])
    state = {
        key: tensor.clone() if tensor.dim() == 0 else torch.cat([each.state[key].flatten() for each in variables])
        for key, tensor in first.state.items()
    }
    yield first._replace(weight=weight, state=state)
    _copy_back(weight, [variable.weight for variable in variables])
    for key, tensor in state.items():
        parts = [variable.state[key] for variable in variables]
        if tensor.dim() == 0:
            for part in parts:
                part.copy_(tensor)
        else:
            _copy_back(tensor, parts)


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

"""Operations on sets of points, after torch_cluster (python/ops.py:1047-1135; pyg_torch_cluster/*.cpp of PopTorch).

N, M: points of two sets, D: features.
"""

from __future__ import annotations

import math
from typing import Any, List, Optional, Sequence, Union

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import cpp_error, error

Batch = Union[List[int], Tensor]


def fps(src: Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False) -> Tensor:
    """Returns indices of points of `src` (N, D), each in turn the farthest from the points taken before.

    `ptr`: the index of each sample's first point, then N. Of each sample, ceil(ratio * points) points are taken,
    beginning with its first point or a random point. Raises Error for arguments that PopTorch rejects.
    """
    if not isinstance(src, Tensor):
        raise error(f"`fps` must take a torch.tensor input. {type(src)} is not supported.")
    if not isinstance(ptr, list):
        raise error("`ptr` must be a list of integers.")
    if len(ptr) < 2:
        raise error("`ptr` must containt at least 2 elements.")
    if not isinstance(ratio, float):
        raise error(f"`ratio` must be of float type. {type(ratio)} is not supported.")
    if not isinstance(random_start, bool):
        raise error(f"`random_start` must be of bool type. {type(random_start)} is not supported.")
    _check_on_ipu("fps")
    _check_points(src, ptr, ratio)
    counts = [math.ceil((end - begin) * ratio) for begin, end in zip(ptr, ptr[1:])]
    if context.current.trace is not None:
        return src.new_empty(sum(counts), dtype=torch.int32)
    taken: List[Tensor] = []
    for begin, end, count in zip(ptr, ptr[1:], counts):
        # PopTorch draws the first point from all points but the last.
        first = torch.randint(begin, max(end - 1, begin + 1), ()) if random_start else torch.tensor(begin)
        taken += _farthest(src, begin, end, first, count)
    return torch.stack(taken).to(torch.int32)


def _check_points(src: Tensor, ptr: Sequence[int], ratio: float) -> None:
    if not 0.0 < ratio <= 1.0:
        raise cpp_error(f"`ratio` ({ratio}) has to be in range (0.0, 1.0>")
    if src.dim() != 2:
        raise cpp_error(f"`src` is supposed to be 2d Tensor, while it has {src.dim()} dims")
    if len(ptr) > src.shape[0] + 1:
        raise cpp_error(f"`ptr` length ({len(ptr)}) is supposed to be < src.size(0) ({src.shape[0]})")


def _farthest(src: Tensor, begin: int, end: int, first: Tensor, count: int) -> List[Tensor]:
    """Returns `count` of the points begin..end. Points of other samples, and points already taken, have distance 0."""
    taken, nearest_taken = [first], torch.full_like(src[:, 0], math.inf)
    while len(taken) < count:
        distance = torch.zeros_like(nearest_taken)
        distance[begin:end] = torch.linalg.vector_norm(src[begin:end] - src[taken[-1]], dim=1)
        nearest_taken = torch.minimum(nearest_taken, distance)
        taken.append(nearest_taken.argmax())
    return taken[:count]


def nearest(x: Tensor, y: Tensor, batch_x: Optional[Batch] = None, batch_y: Optional[Batch] = None) -> Tensor:
    """Returns, for each point of `x` (N, D), the index of the nearest point of `y` (M, D).

    `batch_x` (N,) and `batch_y` (M,) are sorted sample numbers, both lists or both tensors, or one is left out; if they
    are given, the nearest point is a point of the same sample. Raises Error for other types, ValueError for shapes and
    samples that do not correspond.
    """
    for name, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor):
            raise error(f"`nearest` must take a torch.tensor `{name}` input. {type(points)} is not supported.")
    batch_x = [] if batch_x is None else batch_x
    batch_y = [] if batch_y is None else batch_y
    if not isinstance(batch_x, (list, Tensor)) or not isinstance(batch_y, (list, Tensor)):
        raise error(
            f"`batch_x` and `batch_y` must be torch.Tensors or lists while `batch_x` is of type {type(batch_x)} and "
            f"`batch_y` is of type {type(batch_y)}."
        )
    _check_on_ipu("nearest")
    x, y = (points[:, None] if points.dim() == 1 else points for points in (x, y))
    _check_pair(x, y)
    if len(batch_x) or len(batch_y):
        samples_x, samples_y = _samples("x", batch_x, x), _samples("y", batch_y, y)
        if isinstance(batch_x, list) and isinstance(batch_y, list):
            _check_samples(batch_x or [0] * len(x), batch_y or [0] * len(y))
        x, y = _set_apart(x, y, samples_x, samples_y)
    return torch.cdist(x.float(), y.float()).argmin(dim=1).to(torch.int32)


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.dim() > 2 or y.dim() > 2:
        raise ValueError(
            f"Inputs `x` and `y` should be max 2D tensors, while `x` has {x.dim()} dims and `y` has {y.dim()} dims."
        )
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"Inputs shapes inconsistent x.shape[1]={x.shape[1]} vs. y.shape[1]={y.shape[1]}")


def _samples(name: str, batch: Batch, points: Tensor) -> Tensor:
    """Returns the sample number of each point (N, 1), which is 0 if `batch` is empty."""
    if not len(batch):
        return torch.zeros(len(points), 1)
    samples = torch.tensor(batch) if isinstance(batch, list) else batch
    if samples.shape != points.shape[:1]:
        raise ValueError(f"{name}.size(0) == batch_{name}.size(0)")
    return samples[:, None]


def _check_samples(batch_x: List[int], batch_y: List[int]) -> None:
    for name, batch in (("batch_x", batch_x), ("batch_y", batch_y)):
        if sorted(batch) != batch:
            raise ValueError(f"'{name}' is not sorted")
    if set(batch_x) != set(batch_y):
        raise ValueError("Some batch indices occur in 'batch_x' that do not occur in 'batch_y'")


def _set_apart(x: Tensor, y: Tensor, samples_x: Tensor, samples_y: Tensor) -> Any:
    """Returns the points scaled to 0..1, with one more feature that sets the samples apart.

    Points of different samples are farther apart than any two points of one sample.
    """
    low = torch.minimum(x.min(), y.min())
    x, y = x - low, y - low
    high = torch.maximum(x.max(), y.max())
    apart = 2 * x.shape[1]
    return torch.cat([x / high, apart * samples_x], dim=1), torch.cat([y / high, apart * samples_y], dim=1)


def _check_on_ipu(name: str) -> None:
    if not context.current.on_ipu:
        raise NotImplementedError(f"Could not run 'poptorch::{name}' with arguments from the 'CPU' backend.")

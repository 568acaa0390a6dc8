"""Datasets with their loaders and accessors, for the tests of the simulator's data loading."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Iterator, List, Optional

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

import vit_ipu.simulator as poptorch

FORK = {"sharing_strategy": poptorch.SharingStrategy.Fork}
MODES = [poptorch.DataLoaderMode.Sync, poptorch.DataLoaderMode.Async, poptorch.DataLoaderMode.AsyncRebatched]
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Numbers(Dataset):  # type: ignore[type-arg]
    """A dataset whose sample i is the number i, in a container made by `make`."""

    def __init__(self, length: int, make: Callable[[Tensor], Any] = lambda number: number) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index >= self.length:
            raise IndexError
        return self.make(torch.as_tensor(index))


class Stream(IterableDataset):  # type: ignore[type-arg]
    """A stream of the numbers below a length, dealt out to the workers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return map(torch.tensor, range(first, self.length, step))


class Picklable(Dataset):  # type: ignore[type-arg]
    """A dataset whose samples contain the id of the process that loads them."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise IndexError
        return torch.tensor([index, os.getpid()])


class Broken(Picklable):
    """A dataset that calls `action` when sample 1 is loaded."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def __getitem__(self, index: int) -> Tensor:
        if index == 1:
            self.action()
        return super().__getitem__(index)


def loader(dataset: Any, mode: poptorch.DataLoaderMode = MODES[0], **arguments: Any) -> poptorch.DataLoader:
    options = arguments.pop("options", None) or poptorch.Options()
    return poptorch.DataLoader(options, dataset, mode=mode, async_options=FORK, **arguments)


def accessor(dataset: Any, **arguments: Any) -> poptorch.AsynchronousDataAccessor:
    return poptorch.AsynchronousDataAccessor(dataset, **{**FORK, **arguments})


def numbers(batches: Any) -> List[List[int]]:
    return [batch.tolist() for batch in batches]


def of_process(process: int, num_processes: int, *, seed: Optional[int] = None) -> poptorch.Options:
    options = poptorch.Options()
    options.Distributed.configureProcessId(process, num_processes)
    return options if seed is None else options.randomSeed(seed)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)

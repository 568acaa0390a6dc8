"""The share of a dataset that one of several processes reads (python/__init__.py:125-205)."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.options.options import Options


class SubDataset:
    """One process's share: consecutive samples of the dataset, in its own order or in a shuffled order.

    If samples are left over, shuffled epochs leave out the end and the beginning of the order in turn, so that every
    sample can occur in two epochs.
    """

    def __init__(self, dataset: Any, options: Options, combined_batch_size: int, drop_last: bool) -> None:
        """Raises ZeroDivisionError, as PopTorch does, if `drop_last` leaves the share without a combined batch."""
        self._dataset = dataset
        self._start, self._length, self._leftovers = share(
            len(dataset),
            options.Distributed.processId,
            options.Distributed.numProcesses,
            multiple_of=combined_batch_size if drop_last else None,
        )
        self._offset = self._start
        self._order: Optional[Tensor] = None  # shared memory: the loader's workers see a new order too
        seed = options.random_seed if options.exists("random_seed") else None
        self._generator_state = None if seed is None else torch.Generator().manual_seed(seed).get_state()

    def next_epoch(self) -> None:
        """Shuffles the dataset again, the same way in every process, and moves the share by the leftovers or back."""
        self._shuffle()
        self._offset = self._start + self._leftovers if self._offset == self._start else self._start

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        position = index + self._offset
        return self._dataset[position if self._order is None else self._order[position]]

    def _shuffle(self) -> None:
        assert self._generator_state is not None, (
            "Seed must be set when shuffling so that all instances end up with the same shuffled global indices."
        )
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        order = torch.randperm(len(self._dataset), generator=generator)
        if self._order is None:
            self._order = order.share_memory_()  # type: ignore[no-untyped-call]
        else:
            self._order.copy_(order)
        self._generator_state = generator.get_state()


def share(num_samples: int, process: int, num_processes: int, *, multiple_of: Optional[int]) -> Tuple[int, int, int]:
    """Returns the start and number of a process's samples, and the number of samples that a second epoch may shift by.

    With `multiple_of`, every process has the same number of samples, a multiple of `multiple_of`; without it, the
    samples are divided evenly.
    """
    if multiple_of is None:
        counts = [len(range(other, num_samples, num_processes)) for other in range(num_processes)]
        return sum(counts[:process]), counts[process], 0
    length = multiple_of * (num_samples // (multiple_of * num_processes))
    start = process * length
    return start, min(length, num_samples - start), num_samples % length

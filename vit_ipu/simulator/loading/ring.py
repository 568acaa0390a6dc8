"""The ring of shared memory through which a worker process passes batches to the host.

The slots of the ring are filled and read in turn. A slot is free, holds a batch, or marks the end of an epoch. The
worker writes a batch before its flag, and the host reads the flag before the batch, so no lock is needed.

Shapes: S slots; a field is one tensor of a batch.
"""

from __future__ import annotations

from typing import List, Sequence

import torch
from torch import Tensor

_WHOLE, _END = 0, -1


class RingMemory:
    """The tensors that both processes see; a RingMemory sent through a pipe is shared rather than copied.

    ready: (S,) bool, True for the host, False for the worker. samples: (S,), the number of valid samples in a slot, or
    _WHOLE, or _END. restarts: (), how often the worker has restarted. fields: (S, *shape) each.
    """

    def __init__(self, num_slots: int, examples: Sequence[Tensor]) -> None:
        """Allocates slots for batches with the shapes and dtypes of the batch `examples`."""
        self.ready = torch.zeros(num_slots, dtype=torch.bool)
        self.samples = torch.zeros(num_slots, dtype=torch.int64)
        self.restarts = torch.zeros((), dtype=torch.int64)
        self.fields = [torch.empty((num_slots, *example.shape), dtype=example.dtype) for example in examples]
        for tensor in (self.ready, self.samples, self.restarts, *self.fields):
            tensor.share_memory_()  # type: ignore[no-untyped-call]


class RingWriter:
    """The worker's side of the ring."""

    def __init__(self, memory: RingMemory) -> None:
        self._memory, self._slot = memory, 0

    def is_free(self) -> bool:
        """Tells whether the host has released the next slot."""
        return not self._memory.ready[self._slot]

    @torch.no_grad()
    def write(self, batch: Sequence[Tensor]) -> None:
        """Fills the next slot with a batch."""
        for field, tensor in zip(self._memory.fields, batch):
            field[self._slot].copy_(tensor)
        self._publish(_WHOLE)

    @torch.no_grad()
    def write_parts(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Fills the next slot with the parts of a batch, joined along dim 0; the batch may be smaller than the slot."""
        used = 0
        for part in parts:
            count = len(part[0])
            for field, tensor in zip(self._memory.fields, part):
                field[self._slot][used : used + count].copy_(tensor)
            used += count
        self._publish(used)

    def write_end(self) -> None:
        """Marks the next slot as the end of an epoch."""
        self._publish(_END)

    def restart(self) -> None:
        """Drops the batches that the host has not read, and counts the restart."""
        self._memory.ready.fill_(False)
        self._slot = 0
        self._memory.restarts += 1

    def _publish(self, samples: int) -> None:
        self._memory.samples[self._slot] = samples
        self._memory.ready[self._slot] = True
        self._slot = (self._slot + 1) % len(self._memory.ready)


class RingReader:
    """The host's side of the ring; a reader holds at most one slot, the slot of the batch in use."""

    def __init__(self, memory: RingMemory) -> None:
        self._memory, self._slot = memory, 0
        self._held = -1

    @property
    def indices_mem(self) -> Tensor:
        """Flags (S,) bool of the slots that the host may read."""
        return self._memory.ready

    @property
    def restarts(self) -> int:
        """The number of times that the worker has restarted."""
        return int(self._memory.restarts)

    def is_ready(self) -> bool:
        """Tells whether the next slot holds a batch or the end of an epoch."""
        return bool(self._memory.ready[self._slot])

    def at_end(self) -> bool:
        """Tells whether the next slot, which is ready, marks the end of an epoch."""
        return bool(self._memory.samples[self._slot] == _END)

    def skip(self) -> None:
        """Skips the next slot and returns it to the worker."""
        self._memory.ready[self._slot] = False
        self._advance()

    def take(self) -> List[Tensor]:
        """Returns the batch in the next slot, in shared memory; the batch does not change until `release`."""
        assert self._held < 0, (
            "The current element must be released by calling releaseElement() before trying to acquire a new one"
        )
        batch = [field[self._slot] for field in self._memory.fields]
        samples = int(self._memory.samples[self._slot])
        self._held = self._slot
        self._advance()
        return batch if samples == _WHOLE else [tensor[:samples] for tensor in batch]

    def release(self) -> None:
        """Returns the slot of the batch in use to the worker."""
        if self._held >= 0:
            self._memory.ready[self._held] = False
        self._held = -1

    def restart(self) -> None:
        """Moves to the first slot, where the worker has restarted."""
        self._slot = 0

    def _advance(self) -> None:
        self._slot = (self._slot + 1) % len(self._memory.ready)

"""The ring of shared memory through which a worker process hands batches to the host.

Its slots are filled and read in turn. A slot is free, holds a batch, or marks the end of an epoch. The worker writes
a batch before its flag, and the host reads the flag before the batch, so no lock is needed.

Shapes: S slots; a field is one tensor of a batch.
"""

from __future__ import annotations

from typing import List, Sequence

import torch
from torch import Tensor

_WHOLE, _END = 0, -1


class RingMemory:
    """The tensors that both processes see; sent through a pipe, it is shared rather than copied.

    ready: (S,) bool, True for the host, False for the worker. samples: (S,), how many of a slot's samples count, or
    _WHOLE, or _END. restarts: (), how often the worker began anew. fields: one (S, *shape) each.
    """

    def __init__(self, num_slots: int, examples: Sequence[Tensor]) -> None:
        """`examples`: a batch of the shapes and dtypes to come."""
        self.ready = torch.zeros(num_slots, dtype=torch.bool)
        self.samples = torch.zeros(num_slots, dtype=torch.int64)
        self.restarts = torch.zeros((), dtype=torch.int64)
        self.fields = [torch.empty((num_slots, *example.shape), dtype=example.dtype) for example in examples]
        for tensor in (self.ready, self.samples, self.restarts, *self.fields):
            tensor.share_memory_()  # type: ignore[no-untyped-call]


class RingWriter:
    """The worker's side."""

    def __init__(self, memory: RingMemory) -> None:
        self._memory, self._slot = memory, 0

    def is_free(self) -> bool:
        """Whether the host has released the slot that is next."""
        return not self._memory.ready[self._slot]

    @torch.no_grad()
    def write(self, batch: Sequence[Tensor]) -> None:
        """Fills the slot with a batch."""
        for field, tensor in zip(self._memory.fields, batch):
            field[self._slot].copy_(tensor)
        self._publish(_WHOLE)

    @torch.no_grad()
    def write_parts(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Fills the slot with the parts of a batch, joined along dim 0; fewer samples than it has make it a cut one."""
        used = 0
        for part in parts:
            count = len(part[0])
            for field, tensor in zip(self._memory.fields, part):
                field[self._slot][used : used + count].copy_(tensor)
            used += count
        self._publish(used)

    def write_end(self) -> None:
        """Marks the slot as the end of an epoch."""
        self._publish(_END)

    def restart(self) -> None:
        """Drops what the host has not read, and says so."""
        self._memory.ready.fill_(False)
        self._slot = 0
        self._memory.restarts += 1

    def _publish(self, samples: int) -> None:
        self._memory.samples[self._slot] = samples
        self._memory.ready[self._slot] = True
        self._slot = (self._slot + 1) % len(self._memory.ready)


class RingReader:
    """The host's side; it holds at most one slot, that of the batch in use."""

    def __init__(self, memory: RingMemory) -> None:
        self._memory, self._slot = memory, 0
        self._held = -1

    @property
    def indices_mem(self) -> Tensor:
        """(S,) bool: which slots hold something for the host."""
        return self._memory.ready

    @property
    def restarts(self) -> int:
        """How often the worker began anew."""
        return int(self._memory.restarts)

    def is_ready(self) -> bool:
        """Whether the next slot holds a batch or an end."""
        return bool(self._memory.ready[self._slot])

    def at_end(self) -> bool:
        """Whether the next slot, which is ready, marks an end."""
        return bool(self._memory.samples[self._slot] == _END)

    def skip(self) -> None:
        """Passes the next slot."""
        self._memory.ready[self._slot] = False
        self._advance()

    def take(self) -> List[Tensor]:
        """The batch in the next slot, in shared memory; it stays as it is until released."""
        assert self._held < 0, (
            "The current element must be released by calling releaseElement() before trying to acquire a new one"
        )
        batch = [field[self._slot] for field in self._memory.fields]
        samples = int(self._memory.samples[self._slot])
        self._held = self._slot
        self._advance()
        return batch if samples == _WHOLE else [tensor[:samples] for tensor in batch]

    def release(self) -> None:
        """Gives the slot of the batch in use back to the worker."""
        if self._held >= 0:
            self._memory.ready[self._held] = False
        self._held = -1

    def restart(self) -> None:
        """Follows the worker, which began anew, to the first slot."""
        self._slot = 0

    def _advance(self) -> None:
        self._slot = (self._slot + 1) % len(self._memory.ready)

"""Transfers between the host and a GPU while the GPU computes. Shapes: D updates of a host step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Tuple

import torch
from torch import Tensor

from vit_ipu.backends.contract import HostBatch, StepResult
from vit_ipu.backends.native.distributed import wait_for


class Uploader:
    """Copies batches to a device; on a GPU, while it computes on the batch before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def upload(self, batch: HostBatch) -> HostBatch:
        """Returns the batch on the device; the memory of the given one may then be used again."""
        if self._stream is None:
            return HostBatch(*(tensor.to(self._device) for tensor in batch.inputs))
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in batch.inputs]
        self._stream.synchronize()
        for tensor in copies:
            tensor.record_stream(computing)  # else its memory could be given away while kernels wait to read it
        return HostBatch(*copies)


@dataclass(frozen=True)
class Anchor:
    """An event of a GPU, and the time of the host (`time.monotonic()`) at which the GPU came to it."""

    event: torch.cuda.Event
    time: float

    @classmethod
    def now(cls) -> Anchor:
        """Returns an event that the GPU comes to at once, because it has nothing to do."""
        return cls(recorded_event(), time.monotonic())

    def time_of(self, event: torch.cuda.Event) -> float:
        """Returns the time of the host at which the GPU came to a later event. It must have come to it."""
        milliseconds: float = self.event.elapsed_time(event)  # type: ignore[no-untyped-call]
        return self.time + milliseconds / 1000


def recorded_event() -> torch.cuda.Event:
    """Returns an event that the GPU comes to when it has done what the host has asked for so far."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class PendingResult(StepResult):
    """The result of a host step that a GPU may still compute; reading the losses waits for it.

    Every process of a run must read them, at the same place of the program.
    """

    _on_host: Tensor
    _event: torch.cuda.Event
    _anchor: Anchor
    _mean: Callable[[Tensor], Tensor]
    _values: Tuple[float, ...]

    def __init__(self, losses: Tensor, num_samples: int, mean: Callable[[Tensor], Tensor], anchor: Anchor) -> None:
        """`losses` (D,) are on the GPU; `mean` averages them over all processes; `anchor` came before the host step."""
        on_host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
        on_host.copy_(losses, non_blocking=True)
        # the class is frozen for all others
        self.__dict__.update(
            num_samples=num_samples, _on_host=on_host, _event=recorded_event(), _anchor=anchor, _mean=mean
        )

    def wait(self) -> None:
        """Waits until the GPU has made the host step. Raises RunFailed if another process has ended before."""
        wait_for(self._event)

    @property
    def is_known(self) -> bool:
        return "_values" in self.__dict__

    @property
    def ended_at(self) -> float:
        self.wait()
        return self._anchor.time_of(self._event)

    def as_anchor(self) -> Anchor:
        """Returns the end of the host step as an anchor, after waiting for it."""
        return Anchor(self._event, self.ended_at)

    @property
    def is_done(self) -> bool:
        """Whether the GPU has made the host step, so that `wait` returns at once."""
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    @property
    def losses(self) -> Tuple[float, ...]:  # type: ignore[override]
        if not self.is_known:
            self.wait()
            self.__dict__["_values"] = tuple(self._mean(self._on_host).tolist())
        return self._values

    @property
    def loss(self) -> float:  # type: ignore[override]
        return sum(self.losses) / len(self.losses)

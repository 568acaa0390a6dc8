"""Transfers between the host and a GPU while the GPU computes. Shapes: D updates of a host step."""

from __future__ import annotations

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


class PendingResult(StepResult):
    """The result of a host step that a GPU may still compute; reading the losses waits for it.

    Every process of a run must read them, at the same place of the program.
    """

    _on_host: Tensor
    _event: torch.cuda.Event
    _mean: Callable[[Tensor], Tensor]
    _values: Tuple[float, ...]

    def __init__(self, losses: Tensor, num_samples: int, mean: Callable[[Tensor], Tensor]) -> None:
        """`losses` (D,) are on the GPU; `mean` averages them over all processes."""
        on_host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
        on_host.copy_(losses, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        # the class is frozen for all others
        self.__dict__.update(num_samples=num_samples, _on_host=on_host, _event=event, _mean=mean)

    def wait(self) -> None:
        """Waits until the GPU has made the host step. Raises RunFailed if another process has ended before."""
        wait_for(self._event)

    @property
    def is_known(self) -> bool:
        return "_values" in self.__dict__

    @property
    def is_done(self) -> bool:
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

"""Memory for host steps, which worker processes write and a GPU reads."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Iterator, List, Sequence

import torch
from torch import Tensor

from vit_ipu.errors import RunFailed
from vit_ipu.text import counted


@dataclass(frozen=True)
class Buffer:
    """Memory for one host step: images (n, 3, S, S) and labels (n,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, count: int, image_size: int, dtype: torch.dtype, *, shared: bool) -> Buffer:
        """Allocates memory for `count` images, shared if `shared`. Raises RunFailed if shared memory is full."""
        images = torch.empty(count, 3, image_size, image_size, dtype=dtype)
        labels = torch.empty(count, dtype=torch.int64)
        if shared:
            try:
                images, labels = (tensor.share_memory_() for tensor in (images, labels))  # type: ignore[no-untyped-call]
            except RuntimeError as error:  # torch's error if /dev/shm is full, or a limit is reached
                if os.strerror(errno.EMFILE) in str(error):
                    raise RunFailed(
                        f"no shared memory for a host step of {counted(count, 'image')}: "
                        f"{os.strerror(errno.EMFILE)}; raise the "
                        "limit (ulimit -n), or set data.num_workers: 0"
                    ) from None
                raise RunFailed(
                    f"no shared memory for a host step of {counted(count, 'image')}: make /dev/shm "
                    "larger (a container's "
                    f"--shm-size), or set data.num_workers: 0 ({str(error).splitlines()[0]})"
                ) from None
        return cls(images, labels)


@contextmanager
def page_locked(buffers: Sequence[Buffer]) -> Iterator[None]:
    """Page-locks the buffers if this process uses a GPU, so that the GPU can read the buffers directly."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    locked: List[Tensor] = []
    try:
        for images in (buffer.images for buffer in buffers):
            if int(runtime.cudaHostRegister(images.data_ptr(), images.numpy().nbytes, 0)) == 0:
                locked.append(images)
            else:
                _clear_cuda_error()
        yield
    finally:
        for tensor in locked:
            runtime.cudaHostUnregister(tensor.data_ptr())


def _clear_cuda_error() -> None:
    """Clears CUDA's sticky error, which the next launch would report, with a dummy launch."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")

"""What holds while the simulator traces a model or runs it, and what the model's annotations act upon."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import Protocol

from vit_ipu.simulator.dtypes import in_32_bits


class StageManager(Protocol):
    """Gives each block that begins its stage and its IPU."""

    def beginStage(self, user_id: Optional[str], ipu_id_from_block: Optional[int]) -> None: ...

    def nextAutoId(self) -> str: ...

    def resetAutoId(self) -> None: ...


class OverlapMarks(Protocol):
    """Notes which tensors a model marks for overlapped input and output."""

    def mark(self, source: Tensor, marked: Tensor, mode: Any, *, is_input: bool) -> None: ...


class ActiveTrace(Protocol):
    """The trace of a model, as far as the model's annotations know it."""

    is_training: bool

    @property
    def overlaps(self) -> OverlapMarks: ...

    def end_block(self) -> None: ...

    def checkpoint(self, tensors: Sequence[Tensor]) -> None: ...


@dataclass(frozen=True)
class Session:
    """What the simulator is doing with a model now."""

    on_ipu: bool = False
    """Whether the model is traced or run, rather than called on the host."""
    trace: Optional[ActiveTrace] = None
    """The trace under way, if the model is traced."""
    stage_manager: Optional[StageManager] = None
    """What the blocks of a traced model are reported to."""
    on_loss: Optional[Callable[[Tensor], None]] = None
    """Takes each loss that the model marks."""

    def mark_loss(self, loss: Tensor) -> None:
        """Notes a loss of the model that is being traced or run."""
        if self.on_loss is not None:
            self.on_loss(loss)

    def device_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the type that the device has in place of `dtype`: an IPU has 32 bits for 64."""
        return in_32_bits(dtype) if self.on_ipu else dtype


HOST = Session()
current = HOST
"""The session of this process."""


@contextmanager
def during(session: Session) -> Iterator[None]:
    """Makes `session` the current one."""
    global current
    before, current = current, session
    try:
        yield
    finally:
        current = before


@contextmanager
def on_host() -> Iterator[None]:
    """Runs the body, inside a model's forward, on the host: none of it is traced or belongs to the IPU."""
    with during(HOST), torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Turns off torch.distributions' checks of arguments, which need them on the host (_poplar_executor.py:80-110)."""
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)  # type: ignore[no-untyped-call]

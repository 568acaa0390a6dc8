"""The session: whether the simulator traces or runs a model, and the objects that the model's annotations act on."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Iterator, Optional, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import Protocol

from vit_ipu.simulator.dtypes import in_32_bits

Body = Callable[[], ContextManager[None]]
"""Makes a context manager for each run of a body of a loop or of a condition."""


class StageManager(Protocol):
    """Assigns a stage and an IPU to each block that begins."""

    def beginStage(self, user_id: Optional[str], ipu_id_from_block: Optional[int]) -> None: ...

    def nextAutoId(self) -> str: ...

    def resetAutoId(self) -> None: ...


class OverlapMarks(Protocol):
    """Records which tensors a model marks for overlapped input and output."""

    def mark(self, source: Tensor, marked: Tensor, mode: Any, *, is_input: bool) -> None: ...


class ActiveTrace(Protocol):
    """The trace of a model, with the members that the model's annotations use."""

    is_training: bool

    @property
    def overlaps(self) -> OverlapMarks: ...

    def begin_block(self, stage: int, ipu: int) -> None: ...

    def end_block(self) -> None: ...

    def checkpoint(self, tensors: Sequence[Tensor]) -> None: ...

    def note_computed(self, tensors: Sequence[Tensor]) -> None: ...


@dataclass(frozen=True)
class Session:
    """The simulator's current activity: a model is called on the host, traced, or run."""

    on_ipu: bool = False
    """True if the model is traced or run, False if the model is called on the host."""
    trace: Optional[ActiveTrace] = None
    """The current trace, if the model is traced."""
    stage_manager: Optional[StageManager] = None
    """Receives the blocks of a traced model as they begin."""
    on_loss: Optional[Callable[[Tensor], None]] = None
    """Receives each loss that the model marks."""
    on_body: Optional[Callable[[], Body]] = None
    """Receives each body of a loop or of a condition, in the order of the bodies in the model."""

    def next_body(self) -> Body:
        """Returns the context of the runs of the next body of a loop or of a condition."""
        return nullcontext if self.on_body is None else self.on_body()

    def mark_loss(self, loss: Tensor) -> None:
        """Passes a loss of the model that is being traced or run to `on_loss`."""
        if self.on_loss is not None:
            self.on_loss(loss)

    def device_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype that the device uses for `dtype`: an IPU has 32-bit types in place of 64-bit types."""
        return in_32_bits(dtype) if self.on_ipu else dtype


HOST = Session()
current = HOST
"""The session of this process."""


@contextmanager
def during(session: Session) -> Iterator[None]:
    """Makes `session` the current session inside the `with` block."""
    global current
    before, current = current, session
    try:
        yield
    finally:
        current = before


@contextmanager
def on_host() -> Iterator[None]:
    """Runs the `with` block, inside a model's forward, on the host, neither traced nor run on the IPU."""
    with during(HOST), torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Turns off torch.distributions' checks, which need the arguments on the host (_poplar_executor.py:80-110)."""
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)  # type: ignore[no-untyped-call]

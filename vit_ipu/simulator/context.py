"""What holds while the simulator traces a model or runs it, and what the model's annotations act upon."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator, List, Optional

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from vit_ipu.simulator.options.strategies import StageManager
    from vit_ipu.simulator.tracing.trace import Trace

on_ipu = False
stage_manager: Optional[StageManager] = None
trace: Optional[Trace] = None
_losses: Optional[List[Tensor]] = None


def mark_loss(loss: Tensor) -> None:
    """Notes a loss of the model that is being traced or run."""
    if _losses is not None:
        _losses.append(loss)


def device_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that the IPU has in place of `dtype`: 32 bits for 64 (popart_compiler/source/Utils.cpp:141-151)."""
    return in_32_bits(dtype) if on_ipu else dtype


def in_32_bits(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or the type of half its bits for one of 64."""
    return {torch.int64: torch.int32, torch.float64: torch.float32}.get(dtype, dtype)


@contextmanager
def running(losses: List[Tensor]) -> Iterator[None]:
    """The model runs on the simulated IPU; its losses are appended to `losses`."""
    global on_ipu, _losses
    on_ipu, _losses = True, losses
    try:
        yield
    finally:
        on_ipu, _losses = False, None


@contextmanager
def tracing(new_trace: Trace, manager: StageManager) -> Iterator[None]:
    """The model is traced: its blocks are reported to `new_trace`."""
    global stage_manager, trace
    stage_manager, trace = manager, new_trace
    manager.on_begin = new_trace.begin_block
    try:
        with running(new_trace.losses):
            yield
    finally:
        stage_manager, trace = None, None
        manager.on_begin = None


@contextmanager
def on_host() -> Iterator[None]:
    """What runs inside a model's forward, but on the host: nothing of it is traced or belongs to the IPU."""
    global on_ipu, stage_manager, trace, _losses
    saved = on_ipu, stage_manager, trace, _losses
    on_ipu, stage_manager, trace, _losses = False, None, None, None
    try:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            yield
    finally:
        on_ipu, stage_manager, trace, _losses = saved


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """torch.distributions does not check arguments, which needs them on the host (_poplar_executor.py:80-110)."""
    distribution = torch.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)  # type: ignore[no-untyped-call]

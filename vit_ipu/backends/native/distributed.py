"""Several processes on CPUs or GPUs, as torchrun starts them: each takes a part of every update's micro-batches.

The processes hold the same weights. Gradients are averaged over NCCL between GPUs and over gloo between CPUs: by
gradient_mean.py where a working copy of the weights computes, and by DistributedDataParallel elsewhere. All else that
the processes tell each other goes over gloo, so that no GPU is waited for.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, Iterator, List, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from vit_ipu.backends.contract import Instances
from vit_ipu.backends.native.lifeline import Lifeline
from vit_ipu.errors import DeviceError, RunFailed
from vit_ipu.text import counted, shortened

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, which may be compiling or reading slow disks."""
_POLL = 0.0002
"""Seconds between two looks at a GPU."""
_GROUPS: List[Any] = []
"""Every group that was joined, until the program ends. If the last reference to a gloo group is dropped just after a
message, Python waits for the group's thread, which waits for Python's lock to free the message: a deadlock."""
_SENT: Dict[torch.Size, Tensor] = {}
"""A tensor for the messages of each shape. It outlives them: for a tensor that Python has let go of, the group's thread
would wait for Python's lock in the same way, while the program ends."""
_LIFELINES: List[Lifeline] = []
"""The lifeline of this process, if GPUs wait for each other."""
_PARAMETERS = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"
"""The buffers are constants; newer versions of torch have another name for the option."""
_SIGNS_OF_A_LOST_PROCESS = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "Timed out", "timeout")
"""Parts of the messages of gloo and NCCL."""


def num_processes() -> int:
    """Returns the number of processes that torchrun has started: 1 without torchrun.

    Raises DeviceError if there are several, and its environment variables are incomplete.
    """
    count = _number("WORLD_SIZE")
    if count is None or count < 2:
        return 1
    for name in ("RANK", "LOCAL_RANK"):
        number = _number(name)
        if number is None or number >= count:
            raise _incomplete(count, name)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise _incomplete(count, name)
    return count


def is_under_torchrun() -> bool:
    """Tells whether torchrun has started this process, for devices that do not read its other variables."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"


def _number(variable: str) -> Optional[int]:
    """Returns the number in an environment variable, None if there is none."""
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 7 else None


def _incomplete(count: int, name: str) -> DeviceError:
    value = shortened(os.environ.get(name, ""), 20)
    return DeviceError(
        f"WORLD_SIZE is {count}, but {name} is {value or 'not set'}: start several processes with torchrun "
        "--standalone --nproc-per-node N -m vit_ipu, or unset WORLD_SIZE"
    )


def local_device(kind: str) -> torch.device:
    """Returns the device of this process: under torchrun, every process of a host has a GPU of its own.

    Raises DeviceError if torchrun has started more processes than there are GPUs.
    """
    if kind != "cuda" or num_processes() == 1:
        return torch.device(kind)
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise DeviceError(
            f"torchrun has started {local + 1} or more processes on a host with "
            f"{counted(gpus, 'GPU')}: use --nproc-per-node "
            f"{gpus}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def instances(kind: str) -> Instances:
    """Returns the index of this process and the number of processes; joins the processes first.

    Raises DeviceError if they cannot be joined.
    """
    if num_processes() == 1:
        return Instances()
    local_device(kind)
    group = _joined(kind)

    def mean(tensor: Tensor) -> Tensor:
        sent = _SENT.setdefault(tensor.shape, torch.empty(tensor.shape, dtype=torch.float64))
        sent.copy_(tensor.detach())
        with lost_processes_reported():
            dist.all_reduce(sent, group=group)
        return (sent / dist.get_world_size()).to(tensor.dtype)

    return Instances(dist.get_rank(), dist.get_world_size(), mean, are_replicas=False)


@functools.lru_cache(maxsize=None)
def _joined(kind: str) -> Any:
    """Joins the processes, and returns the group for messages between hosts' memories."""
    try:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", init_method="env://", timeout=_PATIENCE)
        _GROUPS.append(dist.group.WORLD)
        if kind != "cuda":
            return dist.group.WORLD
        group = dist.new_group(backend="gloo")
        _GROUPS.append(group)
        _LIFELINES.append(Lifeline(group))
        return group
    except (OSError, RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise DeviceError(f"cannot join torchrun's processes at {where}: {str(error).splitlines()[0]}") from None


@contextmanager
def lost_processes_reported() -> Iterator[None]:
    """Raises RunFailed if the body fails because another process of the run has ended."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_A_LOST_PROCESS):
            raise
        raise _lost() from None


def wait_for(event: torch.cuda.Event) -> None:
    """Waits until a GPU has reached the event. Raises RunFailed if another process of the run ends meanwhile."""
    if not _LIFELINES:
        event.synchronize()
        return
    while not event.query():  # type: ignore[no-untyped-call]
        if _LIFELINES[0].is_lost.is_set():
            raise _lost()
        time.sleep(_POLL)


def _lost() -> RunFailed:
    return RunFailed(
        f"process {dist.get_rank()} of {dist.get_world_size()} stops, because another one has ended: see the message "
        "of that one; then continue with --resume"
    )


def leave() -> None:
    """Leaves the other processes at the end of the program; after an error, they notice that this one has ended."""
    failed = sys.exc_info()[0] is not None
    if dist.is_available() and dist.is_initialized() and not (failed and _LIFELINES):
        for lifeline in _LIFELINES:
            lifeline.say_goodbye()
        _LIFELINES.clear()
        dist.destroy_process_group()
        _joined.cache_clear()


def parallel(module: torch.nn.Module, device: torch.device) -> Optional[torch.nn.parallel.DistributedDataParallel]:
    """Returns the module with gradients averaged over all processes, or None in a single process."""
    if num_processes() == 1:
        return None
    options: Dict[str, Any] = {"gradient_as_bucket_view": True, _SYNC_BUFFERS: False}
    if device.type == "cuda":
        options["device_ids"] = [device]
    return torch.nn.parallel.DistributedDataParallel(module, **options)

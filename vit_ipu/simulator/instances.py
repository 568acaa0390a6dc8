"""Instances of one program, started as by poprun, and their reductions over torch.distributed with gloo.

An instance reads its place among the instances from environment variables that poprun sets; the simulator's
`python -m vit_ipu.simulator --num-instances N` sets them in poprun's place:

    POPDIST_NUM_TOTAL_REPLICAS, POPDIST_NUM_LOCAL_REPLICAS, POPDIST_NUM_IPUS_PER_REPLICA,
    POPDIST_REPLICA_INDEX_OFFSET, POPDIST_LOCAL_INSTANCE_INDEX, POPDIST_UNIFORM_REPLICAS_PER_INSTANCE

and, for gloo's rendezvous, MASTER_ADDR and MASTER_PORT. Each instance simulates its own replicas on its own machine.
"""

from __future__ import annotations

import atexit
import os
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Dict, Iterable, Iterator, Optional, Set

import torch
import torch.distributed as dist

_group: Optional[Any] = None
"""The process group that takes part in collectives; None before `join`."""


def from_environment(name: str, default: int) -> int:
    """Returns the number in the environment variable `name`, which poprun sets, or `default`."""
    return int(os.environ.get(name, str(default)))


def count() -> int:
    """Returns the number of instances, which all have the same number of replicas."""
    return from_environment("POPDIST_NUM_TOTAL_REPLICAS", 1) // from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def index() -> int:
    """Returns the index of this instance."""
    return from_environment("POPDIST_REPLICA_INDEX_OFFSET", 0) // from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def is_joined() -> bool:
    """Tells whether the instances are joined."""
    return _group is not None


def join() -> None:
    """Joins the instances in a process group. Raises RuntimeError if they are joined already."""
    global _group
    if _group is not None:
        raise RuntimeError("popdist.init() was called before")
    if count() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", rank=index(), world_size=count())
        atexit.register(leave)
    _group = dist.group.WORLD if count() > 1 else object()


def joined_group() -> Any:
    """Returns the process group that takes part in collectives; joins the instances first if necessary."""
    if _group is None:
        join()
    return _group


def leave() -> None:
    """Leaves the process group, at the latest when the program ends."""
    global _group
    if _group is not None and dist.is_initialized():
        with suppress(RuntimeError):  # waits for the other instances, unless they have failed
            dist.monitored_barrier(timeout=timedelta(seconds=5))
        dist.destroy_process_group()
    _group = None


@contextmanager
def among(members: Set[int]) -> Iterator[bool]:
    """Limits collectives inside the `with` block to `members`; yields whether this instance is a member."""
    global _group
    all_instances = joined_group()
    group = dist.new_group(sorted(members))  # a collective call: every instance makes it
    is_member = index() in members
    if is_member:
        _group = group
    try:
        yield is_member
    finally:
        _group = all_instances


def all_reduce(tensors: Iterable[torch.Tensor], *, mean: bool = False) -> None:
    """Replaces each tensor by its sum, or its mean, over the instances.

    Every instance must call this function with tensors of the same shapes.
    """
    if count() == 1:
        return
    group = joined_group()
    for tensor in tensors:
        on_host = tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        on_host = on_host.clone() if on_host.data_ptr() == tensor.data_ptr() else on_host
        dist.all_reduce(on_host, group=group)
        if mean:
            on_host /= dist.get_world_size(group)
        tensor.detach().copy_(on_host)


def reduce_gradients(gradients: Dict[str, torch.Tensor], *, processes: int, mean: bool) -> Dict[str, torch.Tensor]:
    """Returns the gradients of an instance's replicas summed, or averaged, over all instances.

    `processes` is Options.Distributed.numProcesses. Raises NotImplementedError if `processes` differs from the number
    of instances.
    """
    if processes == 1:
        return gradients
    if count() != processes:
        raise NotImplementedError(
            f"training in {processes} processes that poprun did not start is not simulated: start them with "
            f"python -m vit_ipu.simulator --num-instances {processes} and use popdist.poptorch.Options"
        )
    all_reduce([gradients[name] for name in sorted(gradients)], mean=mean)
    return gradients

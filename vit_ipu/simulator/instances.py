"""The instances of one program, as poprun starts them, and what they reduce together over torch.distributed with gloo.

An instance learns who it is from the environment that poprun gives it, here `python -m vit_ipu.simulator
--num-instances N`:

    POPDIST_NUM_TOTAL_REPLICAS, POPDIST_NUM_LOCAL_REPLICAS, POPDIST_NUM_IPUS_PER_REPLICA,
    POPDIST_REPLICA_INDEX_OFFSET, POPDIST_LOCAL_INSTANCE_INDEX, POPDIST_UNIFORM_REPLICAS_PER_INSTANCE

and, because gloo needs to meet somewhere, MASTER_ADDR and MASTER_PORT. Each instance simulates its own replicas on a
machine of its own.
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
"""The instances that take part in collectives; None before `join`."""


def from_environment(name: str, default: int) -> int:
    """Returns a number that poprun gave this instance."""
    return int(os.environ.get(name, str(default)))


def count() -> int:
    """Returns the number of instances, which all have the same number of replicas."""
    return from_environment("POPDIST_NUM_TOTAL_REPLICAS", 1) // from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def index() -> int:
    """Returns the number of this instance."""
    return from_environment("POPDIST_REPLICA_INDEX_OFFSET", 0) // from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def is_joined() -> bool:
    """Tells whether the instances were joined."""
    return _group is not None


def join() -> None:
    """Joins the instances. Raises RuntimeError if it is done twice."""
    global _group
    if _group is not None:
        raise RuntimeError("popdist.init() was called before")
    if count() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", rank=index(), world_size=count())
        atexit.register(leave)
    _group = dist.group.WORLD if count() > 1 else object()


def joined_group() -> Any:
    """Returns the instances that take part in collectives, and joins them first if that is not done."""
    if _group is None:
        join()
    return _group


def leave() -> None:
    """Leaves the instances, at the latest when the program ends."""
    global _group
    if _group is not None and dist.is_initialized():
        with suppress(RuntimeError):  # none leaves while others still talk to it, unless they have failed
            dist.monitored_barrier(timeout=timedelta(seconds=5))
        dist.destroy_process_group()
    _group = None


@contextmanager
def among(members: Set[int]) -> Iterator[bool]:
    """Lets only `members` take part in the collectives of the body; yields whether this instance is one of them."""
    global _group
    everybody = joined_group()
    group = dist.new_group(sorted(members))  # a collective call of all
    is_member = index() in members
    if is_member:
        _group = group
    try:
        yield is_member
    finally:
        _group = everybody


def all_reduce(tensors: Iterable[torch.Tensor], *, mean: bool = False) -> None:
    """Replaces each tensor by its sum, or its mean, over the instances; all must call it with the same shapes."""
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

    `processes` is what the options say, Options.Distributed.numProcesses. Raises NotImplementedError if it is another
    number than that of the instances.
    """
    if processes == 1:
        return gradients
    if count() != processes:
        raise NotImplementedError(
            f"training in {processes} processes that popdist does not know of is not simulated: start them with "
            f"python -m vit_ipu.simulator --num-instances {processes} and use popdist.poptorch.Options"
        )
    all_reduce([gradients[name] for name in sorted(gradients)], mean=mean)
    return gradients

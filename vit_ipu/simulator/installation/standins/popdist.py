"""A stand-in for `popdist`: the instances of one program, over torch.distributed with gloo.

The names and their meaning are those of PopDist's documentation
(https://docs.graphcore.ai/projects/poprun-user-guide/en/latest/api_python.html); its source is closed. An instance
learns who it is from the environment that poprun gives it, here `python -m vit_ipu.simulator --num-instances N`:

    POPDIST_NUM_TOTAL_REPLICAS, POPDIST_NUM_LOCAL_REPLICAS, POPDIST_NUM_IPUS_PER_REPLICA,
    POPDIST_REPLICA_INDEX_OFFSET, POPDIST_LOCAL_INSTANCE_INDEX, POPDIST_UNIFORM_REPLICAS_PER_INSTANCE

and, because gloo needs to meet somewhere, MASTER_ADDR and MASTER_PORT. Each instance simulates its own replicas on
a machine of its own; `all_reduce` is where they meet.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from datetime import timedelta
from typing import Any, Callable, Dict, Iterable, Optional, Set

import torch
import torch.distributed as dist

__simulated__ = True

_group: Optional[Any] = None
"""The instances that take part in collectives; None before init()."""


def isPopdistEnvSet() -> bool:
    """Whether the program runs under poprun, or what stands in for it."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def getNumTotalReplicas() -> int:
    """Replicas over all instances."""
    return _from_environment("POPDIST_NUM_TOTAL_REPLICAS", 1)


def getNumLocalReplicas() -> int:
    """Replicas of this instance."""
    return _from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getNumIpusPerReplica() -> int:
    """IPUs of a replica."""
    return _from_environment("POPDIST_NUM_IPUS_PER_REPLICA", 1)


def getReplicaIndexOffset() -> int:
    """The number of this instance's first replica."""
    return _from_environment("POPDIST_REPLICA_INDEX_OFFSET", 0)


def getNumInstances() -> int:
    """Instances of the program, which all have the same number of replicas."""
    return getNumTotalReplicas() // getNumLocalReplicas()


def getInstanceIndex() -> int:
    """The number of this instance."""
    return getReplicaIndexOffset() // getNumLocalReplicas()


def getLocalInstanceIndex() -> int:
    """The number of this instance on its host."""
    return _from_environment("POPDIST_LOCAL_INSTANCE_INDEX", 0)


def checkNumIpusPerReplica(arg0: int) -> bool:
    """Whether the environment has that many IPUs a replica, or does not say."""
    return getNumIpusPerReplica() == arg0 if "POPDIST_NUM_IPUS_PER_REPLICA" in os.environ else True


def getDeviceId(ipusPerReplica: int = 0) -> int:
    """0: each instance has a machine of its own."""
    return 0


def init() -> None:
    """Joins the instances. Raises RuntimeError if it is done twice."""
    global _group
    if _group is not None:
        raise RuntimeError("popdist.init() was called before")
    if getNumInstances() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", rank=getInstanceIndex(), world_size=getNumInstances())
        atexit.register(finalizeBackend)
    _group = dist.group.WORLD if getNumInstances() > 1 else object()


def isBackendInitialized() -> bool:
    """Whether init() was called."""
    return _group is not None


def finalizeBackend() -> None:
    """Leaves the instances, at the latest when the program ends."""
    global _group
    if _group is not None and dist.is_initialized():
        with suppress(RuntimeError):  # nobody leaves while others still talk to it, unless they have failed
            dist.monitored_barrier(timeout=timedelta(seconds=5))
        dist.destroy_process_group()
    _group = None


def synchronize() -> None:
    """Waits until all instances are here."""
    if getNumInstances() > 1:
        dist.barrier(group=_joined())


def execute_on_instances(instances: Set[int], func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `func` on these instances and returns its result; the others go on with None.

    What it does collectively, such as `all_reduce`, happens among these instances.
    """
    global _group
    if getNumInstances() == 1:
        return func(*args, **kwargs) if 0 in instances else None
    everybody = _joined()
    members = dist.new_group(sorted(instances))  # a collective call of all
    if getInstanceIndex() not in instances:
        return None
    _group = members
    try:
        return func(*args, **kwargs)
    finally:
        _group = everybody


def all_reduce(tensors: Iterable[torch.Tensor], *, mean: bool = False) -> None:
    """Replaces each tensor by its sum, or its mean, over the instances; all must call it with the same shapes."""
    if getNumInstances() == 1:
        return
    group = _joined()
    for tensor in tensors:
        on_host = tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        on_host = on_host.clone() if on_host.data_ptr() == tensor.data_ptr() else on_host
        dist.all_reduce(on_host, group=group)
        if mean:
            on_host /= dist.get_world_size(group)
        tensor.detach().copy_(on_host)


def reduce_gradients(gradients: Dict[str, torch.Tensor], *, processes: int, mean: bool) -> Dict[str, torch.Tensor]:
    """The gradients of an instance's replicas, now summed, or averaged, over all instances.

    `processes` is what the options say, Options.Distributed.numProcesses. Raises NotImplementedError if there are
    as many but not as instances of PopDist.
    """
    if processes == 1:
        return gradients
    if getNumInstances() != processes:
        raise NotImplementedError(
            f"training in {processes} processes that popdist does not know of is not simulated: start them with python "
            f"-m vit_ipu.simulator --num-instances {processes} and use popdist.poptorch.Options"
        )
    all_reduce([gradients[name] for name in sorted(gradients)], mean=mean)
    return gradients


def _joined() -> Any:
    if _group is None:
        init()
    return _group


def _from_environment(name: str, default: int) -> int:
    return int(os.environ.get(name, str(default)))

"""A stand-in for `popdist`, by which a process finds its place among the instances of one program.

The names and their meaning are those of PopDist's documentation
(https://docs.graphcore.ai/projects/poprun-user-guide/en/latest/api_python.html); its source is closed.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Set

import torch.distributed as dist

from vit_ipu.simulator import instances as _instances
from vit_ipu.simulator.errors import not_simulated

__simulated__ = True


def isPopdistEnvSet() -> bool:
    """Tells whether the program runs under poprun, or under the simulator in place of poprun."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def getNumTotalReplicas() -> int:
    """Returns the number of replicas over all instances."""
    return _instances.from_environment("POPDIST_NUM_TOTAL_REPLICAS", 1)


def getNumLocalReplicas() -> int:
    """Returns the number of replicas of this instance."""
    return _instances.from_environment("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getNumIpusPerReplica() -> int:
    """Returns the number of IPUs per replica."""
    return _instances.from_environment("POPDIST_NUM_IPUS_PER_REPLICA", 1)


def getReplicaIndexOffset() -> int:
    """Returns the number of this instance's first replica."""
    return _instances.from_environment("POPDIST_REPLICA_INDEX_OFFSET", 0)


def getNumInstances() -> int:
    """Returns the number of instances of the program, which all have the same number of replicas."""
    return _instances.count()


def getInstanceIndex() -> int:
    """Returns the number of this instance."""
    return _instances.index()


def getLocalInstanceIndex() -> int:
    """Returns the number of this instance on its host."""
    return _instances.from_environment("POPDIST_LOCAL_INSTANCE_INDEX", 0)


def checkNumIpusPerReplica(arg0: int) -> bool:
    """Tells whether the environment gives `arg0` IPUs per replica, or no number."""
    return getNumIpusPerReplica() == arg0 if "POPDIST_NUM_IPUS_PER_REPLICA" in os.environ else True


def getDeviceId(ipusPerReplica: int = 0) -> int:
    """Returns 0: each instance has its own machine."""
    return 0


def init() -> None:
    """Joins the instances. Raises RuntimeError on a second call."""
    _instances.join()


def isBackendInitialized() -> bool:
    """Tells whether init() was called."""
    return _instances.is_joined()


def finalizeBackend() -> None:
    """Leaves the instances, at the latest when the program ends."""
    _instances.leave()


def synchronize() -> None:
    """Waits until all instances have called this function."""
    if getNumInstances() > 1:
        dist.barrier(group=_instances.joined_group())


def execute_on_instances(instances: Set[int], func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `func` on these instances and returns its result; the other instances continue with None.

    Collectives that `func` calls run among these instances only.
    """
    if getNumInstances() == 1:
        return func(*args, **kwargs) if 0 in instances else None
    with _instances.among(instances) as is_member:
        return func(*args, **kwargs) if is_member else None


def __getattr__(name: str) -> Any:
    raise not_simulated("popdist", name)

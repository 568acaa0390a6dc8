"""Host processes under poprun: PopDist gives the index of this process and the number of processes.

Written to PopDist's documentation (https://docs.graphcore.ai/projects/poprun-user-guide); never run on hardware.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import poptorch
import torch
from torch import Tensor

from vit_ipu.backends.contract import Instances
from vit_ipu.config import Config
from vit_ipu.errors import ConfigError


def instances(config: Config) -> Instances:
    """Returns the index of this process and the number of processes: one, except under poprun.

    Raises ConfigError if poprun's replicas are not the config's.
    """
    if not _under_poprun():
        return Instances()
    import popdist

    horovod = _joined_instances(popdist)
    replicas, ipus = popdist.getNumTotalReplicas(), popdist.getNumIpusPerReplica()
    evaluation = config.for_evaluation()
    for flag, given, key, wanted in (
        ("num-replicas", replicas, "pipeline.replication_factor", config.pipeline.replication_factor),
        ("ipus-per-replica", ipus, "pipeline.layers_per_ipu", len(config.layers_per_ipu)),
        ("num-replicas", replicas, "run.evaluation_replication_factor", evaluation.pipeline.replication_factor),
        ("ipus-per-replica", ipus, "run.evaluation_layers_per_ipu", len(evaluation.layers_per_ipu)),
    ):
        if given != wanted:
            raise ConfigError(f"poprun --{flag} is {given} but {key} makes {wanted}: make them equal")

    def mean(tensor: Tensor) -> Tensor:
        reduced: Tensor = horovod.allreduce(tensor.to(torch.float32), average=True)
        return reduced.to(tensor.dtype)

    return Instances(popdist.getInstanceIndex(), popdist.getNumInstances(), mean)


@functools.lru_cache(maxsize=None)
def _joined_instances(popdist: Any) -> Any:
    """Joins the instances, once, as Graphcore's programs do, and returns Horovod, by which they communicate."""
    try:
        horovod = importlib.import_module("horovod.torch")
    except ImportError as error:
        raise ConfigError(
            f"poprun needs Horovod, which cannot be loaded ({error}): install the horovod wheel of the Poplar SDK"
        ) from None
    popdist.init()
    horovod.init()
    return horovod


def new_options(config: Config) -> poptorch.Options:
    """Returns options that state the number of replicas: all replicas, or this instance's under poprun."""
    if _under_poprun():
        import popdist.poptorch

        return popdist.poptorch.Options(ipus_per_replica=len(config.layers_per_ipu))
    return poptorch.Options().replicationFactor(config.pipeline.replication_factor)


def _under_poprun() -> bool:
    if importlib.util.find_spec("popdist") is None:
        return False
    import popdist

    return bool(popdist.isPopdistEnvSet())

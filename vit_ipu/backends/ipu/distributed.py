"""Host processes under poprun: PopDist gives the index of this process and the number of processes.

Written to PopDist's documentation (https://docs.graphcore.ai/projects/poprun-user-guide); never run on hardware.
"""

from __future__ import annotations

import importlib.util

import poptorch

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

    if not popdist.isBackendInitialized():
        popdist.init()
    for flag, given, key, wanted in (
        ("num-replicas", popdist.getNumTotalReplicas(), "replication_factor", config.pipeline.replication_factor),
        ("ipus-per-replica", popdist.getNumIpusPerReplica(), "layers_per_ipu", len(config.layers_per_ipu)),
    ):
        if given != wanted:
            raise ConfigError(f"poprun --{flag} is {given} but pipeline.{key} makes {wanted}: make them equal")
    return Instances(popdist.getInstanceIndex(), popdist.getNumInstances())


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

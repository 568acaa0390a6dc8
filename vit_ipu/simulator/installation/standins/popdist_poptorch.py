"""A stand-in for `popdist.poptorch`: options that take replicas and processes from the instances."""

from __future__ import annotations

from typing import Any, Dict, Optional

from vit_ipu.simulator.errors import not_simulated
from vit_ipu.simulator.installation.standins import popdist
from vit_ipu.simulator.options.groups import _DistributedOptions
from vit_ipu.simulator.options.options import Options as _Options

__all__ = ["Options"]


class _PopdistDistributedOptions(_DistributedOptions):
    """Options.Distributed without the methods that PopDist forbids."""

    def disable(self) -> Any:
        raise _blocked("Distributed.disable")

    def setEnvVarNames(self, *args: Any, **kwargs: Any) -> Any:
        raise _blocked("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any, **kwargs: Any) -> Any:
        raise _blocked("Distributed.configureProcessId")


class Options(_Options):
    """poptorch.Options for this instance: its replicas, its number, and the number of instances.

    Raises ValueError if poprun was given a different number of IPUs per replica.
    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        """Checks `ipus_per_replica` against the number that poprun was given; None accepts that number."""
        if ipus_per_replica is not None and not popdist.checkNumIpusPerReplica(ipus_per_replica):
            raise ValueError(
                f"The environment has {popdist.getNumIpusPerReplica()} IPUs per replica but popdist.poptorch.Options "
                f"was given {ipus_per_replica}"
            )
        super().__init__()
        _Options.replicationFactor(self, popdist.getNumLocalReplicas())
        self.Distributed.set(
            distributed_process_id=popdist.getInstanceIndex(), num_distributed_processes=popdist.getNumInstances()
        )
        self.Distributed.__class__ = _PopdistDistributedOptions

    def useIpuId(self, *args: Any, **kwargs: Any) -> Any:
        raise _blocked("useIpuId")

    def replicationFactor(self, *args: Any, **kwargs: Any) -> Any:
        raise _blocked("replicationFactor")

    def toDict(self) -> Dict[str, Any]:
        """Returns the options, with PopART's own: the number of all replicas, and this instance's first replica."""
        frozen = self._is_frozen
        self._unfreeze()
        if popdist.getNumInstances() > 1:
            self._Popart.set("enableDistributedReplicatedGraphs", True)
            self._Popart.set("globalReplicationFactor", popdist.getNumTotalReplicas())
            self._Popart.set("globalReplicaOffset", popdist.getReplicaIndexOffset())
        self._freeze(frozen)
        return super().toDict()


def _blocked(name: str) -> RuntimeError:
    return RuntimeError(f"Cannot call `{name}` with popdist.poptorch.Options")


def __getattr__(name: str) -> Any:
    raise not_simulated("popdist.poptorch", name)

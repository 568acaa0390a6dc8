"""Differences between replicas: grouped parameters, buffers out of step, and the part of an input that each reads.

Parameters follow python/_poplar_executor.py:480-509 (`replicaGrouping`), inputs `Options.inputReplicaGrouping`:
replica r belongs to group r // size if groups are consecutive, and to r % number of groups if they are orthogonal.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.simulator.enums import CommGroupType, VariableRetrievalMode
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.weights import Weights


class Grouping(NamedTuple):
    """Groups of `size` replicas that share a value."""

    kind: CommGroupType
    size: int

    def count(self, num_replicas: int) -> int:
        """Returns the number of groups."""
        if self.kind == CommGroupType.All:
            return 1
        return num_replicas if self.kind == CommGroupType.NoGrouping else num_replicas // self.size

    def group_of(self, replica: int, num_replicas: int) -> int:
        """Returns the number of the group that a replica belongs to."""
        count = self.count(num_replicas)
        return replica % count if self.kind == CommGroupType.Orthogonal else replica * count // num_replicas


Groupings = Dict[str, Grouping]


class GroupableParameter:
    """A parameter as an executor returns it: the model's parameter, which may differ between groups of replicas."""

    def __init__(self, groupings: Groupings, name: str, parameter: nn.Parameter) -> None:
        """`groupings`: receives the parameter's grouping under `name`."""
        self._groupings, self._name, self._parameter = groupings, name, parameter

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Makes the replicas of one group share the parameter, whose first dimension counts the groups."""
        if variable_retrieval_mode != VariableRetrievalMode.OnePerGroup:
            raise NotImplementedError("poptorch.VariableRetrievalMode.AllReplicas is not simulated")
        self._groupings[self._name] = Grouping(CommGroupType(comm_group_type), shards)

    def __getattr__(self, attr: str) -> Any:
        return getattr(self._parameter, attr)


def of_one_replica(weights: Weights, groupings: Groupings, num_replicas: int) -> Weights:
    """Returns the weights with only the first group's share of each grouped parameter, for tracing.

    Raises Error if a grouped parameter is a scalar or its first dimension differs from the number of groups.
    """
    parameters = dict(weights.parameters)
    for name, group in groupings.items():
        tensor = parameters[name]
        if tensor.dim() == 0:
            raise error("Scalars cannot be passed as per-replica weight tensor values")
        if len(tensor) != group.count(num_replicas):
            raise error(
                f"Parameter {name} has {len(tensor)} values along its first dimension, but {group.count(num_replicas)} "
                "groups of replicas"
            )
        parameters[name] = tensor.detach()[0].requires_grad_(tensor.requires_grad)
    return Weights(parameters, weights.buffers)


class Replicas:
    """The weights as each replica sees them; replicas that share a weight share its tensor."""

    def __init__(self, weights: Weights, groupings: Groupings, num_replicas: int, *, own_buffers: bool) -> None:
        """`own_buffers`: every replica has its own buffers."""
        self._weights, self._groupings, self.count = weights, groupings, num_replicas
        self._shares: Dict[Tuple[str, int], Tensor] = {}
        for name, by in groupings.items():
            whole = weights.parameters[name]
            for group in range(by.count(num_replicas)):
                self._shares[name, group] = whole.detach()[group].requires_grad_(whole.requires_grad)
        self._buffers: List[Dict[str, Tensor]] = [weights.buffers]
        if own_buffers:
            copies = range(1, num_replicas)
            self._buffers += [{name: b.clone() for name, b in weights.buffers.items()} for _ in copies]

    @property
    def differ(self) -> bool:
        """Tells whether two replicas see different tensors."""
        return bool(self._groupings) or len(self._buffers) > 1

    @property
    def groups(self) -> Dict[str, int]:
        """The number of groups of each grouped parameter."""
        return {name: by.count(self.count) for name, by in self._groupings.items()}

    def weights_of(self, replica: int) -> Weights:
        """Returns the parameters and buffers of one replica."""
        parameters = dict(self._weights.parameters)
        for name, by in self._groupings.items():
            parameters[name] = self._shares[name, by.group_of(replica, self.count)]
        return Weights(parameters, self._buffers[replica if len(self._buffers) > 1 else 0])

    def tensors_of(self, name: str) -> List[Tensor]:
        """Returns a parameter or buffer as each replica sees it; an empty list if there is none of this name."""
        of_replicas = [dict(self.weights_of(replica).items()) for replica in range(self.count)]
        return [tensors[name] for tensors in of_replicas if name in tensors]

    def state_of(self, name: str, state: Tensor) -> List[Tensor]:
        """Returns the part of a parameter's optimizer state that each replica holds."""
        if name not in self._groupings or not state.dim():
            return [state] * self.count
        return [state[self._groupings[name].group_of(replica, self.count)] for replica in range(self.count)]

    def gather_gradients(self) -> None:
        """Moves the gradients of the groups' shares to the parameters that hold all groups."""
        for name in self._groupings:
            of_name = [share for (owner, _), share in self._shares.items() if owner == name]
            if all(share.grad is None for share in of_name):
                continue
            whole = torch.stack([torch.zeros_like(s) if s.grad is None else s.grad for s in of_name])
            parameter = self._weights.parameters[name]
            parameter.grad = whole if parameter.grad is None else parameter.grad + whole
            for share in of_name:
                share.grad = None

    @torch.no_grad()
    def follow_first(self) -> None:
        """Gives every replica the buffers of the first replica, after the host has written those buffers."""
        for buffers in self._buffers[1:]:
            for name, tensor in buffers.items():
                tensor.copy_(self._buffers[0][name])

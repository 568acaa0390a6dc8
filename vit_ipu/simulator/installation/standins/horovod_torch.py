"""A stand-in for `horovod.torch`, through which PopTorch programs on the hosts of a poprun communicate.

It has the functions that graphcore/examples call, over the instances of `popdist`, and is used only if Horovod is not
installed. Names and parameters are those of https://horovod.readthedocs.io/en/stable/api.html (horovod.torch).
"""

from __future__ import annotations

from typing import Any, Iterable, List, Mapping, Optional, Tuple, Union

import torch
import torch.distributed as dist

from vit_ipu.simulator import instances
from vit_ipu.simulator.errors import not_simulated
from vit_ipu.simulator.installation.standins import popdist

__simulated__ = True

Average, Sum = "Average", "Sum"


def init(*args: Any, **kwargs: Any) -> None:
    """Joins the instances, unless popdist.init() has joined them."""
    if not popdist.isBackendInitialized():
        popdist.init()


def is_initialized() -> bool:
    """Tells whether the instances were joined."""
    return popdist.isBackendInitialized()


def size() -> int:
    """Returns the number of instances of the program."""
    return popdist.getNumInstances()


def rank() -> int:
    """Returns the number of this instance."""
    return popdist.getInstanceIndex()


def local_size() -> int:
    """Returns the number of instances on this host, where all instances run."""
    return size()


def local_rank() -> int:
    """Returns the number of this instance on its host."""
    return popdist.getLocalInstanceIndex()


def allreduce(
    tensor: torch.Tensor,
    average: Optional[bool] = None,
    name: Optional[str] = None,
    compression: Any = None,
    op: Optional[str] = None,
) -> torch.Tensor:
    """Returns a new tensor: the mean over the instances, or the sum with op=Sum or average=False."""
    if op not in (None, Average, Sum):
        raise NotImplementedError(f"horovod.torch.allreduce(op={op!r}) is not simulated")
    reduced = tensor.detach().clone()
    instances.all_reduce([reduced], mean=op != Sum if op is not None else average is not False)
    return reduced


def grouped_allreduce(tensors: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> List[torch.Tensor]:
    """Returns `allreduce` of each tensor."""
    return [allreduce(tensor, *args, **kwargs) for tensor in tensors]


def allgather(tensor: torch.Tensor, name: Optional[str] = None) -> torch.Tensor:
    """Returns the instances' tensors, joined along their first dimension, in which they may differ."""
    if size() == 1:
        return tensor.detach().clone()
    parts: List[Any] = [None] * size()
    init()
    dist.all_gather_object(parts, tensor.detach().cpu())
    return torch.cat(parts)


def broadcast(tensor: torch.Tensor, root_rank: int, name: Optional[str] = None) -> torch.Tensor:
    """Returns a new tensor with the values of the instance `root_rank`."""
    return broadcast_(tensor.detach().clone(), root_rank, name)


def broadcast_(tensor: torch.Tensor, root_rank: int, name: Optional[str] = None) -> torch.Tensor:
    """Overwrites the tensor with the values of the instance `root_rank`; returns the tensor."""
    if size() > 1:
        init()
        sent = tensor.detach().cpu().contiguous()
        dist.broadcast(sent, root_rank)
        tensor.detach().copy_(sent)
    return tensor


def broadcast_parameters(params: Union[Mapping[str, Any], Iterable[Tuple[str, Any]]], root_rank: int) -> None:
    """Overwrites the tensors of a state_dict, or of named parameters, with the values of the instance `root_rank`."""
    for _, tensor in sorted(params.items() if isinstance(params, Mapping) else params, key=lambda item: item[0]):
        if isinstance(tensor, torch.Tensor):
            broadcast_(tensor, root_rank)


def broadcast_object(obj: Any, root_rank: int = 0, name: Optional[str] = None) -> Any:
    """Returns the object of the instance `root_rank`."""
    if size() == 1:
        return obj
    init()
    sent = [obj]
    dist.broadcast_object_list(sent, root_rank)
    return sent[0]


def shutdown() -> None:
    """Does nothing: popdist leaves the instances."""


def __getattr__(name: str) -> Any:
    raise not_simulated("horovod.torch", name)

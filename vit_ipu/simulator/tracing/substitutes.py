"""Results that stand in for those of refused operations, so that tracing continues and finds what comes after them."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator import context
from vit_ipu.simulator.errors import Error
from vit_ipu.simulator.nested import flatten, map_tensors
from vit_ipu.simulator.tracing.dispatch_mode import is_host
from vit_ipu.simulator.tracing.findings import Unfinished

_MOST_ELEMENTS = 2**25
"""Elements of the tensors that an operation may be run with on the host."""


def result_of_operation(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Returns a result for a refused aten operation: of the right shape, or of one that is as large as it can be.

    Raises Unfinished if there is none.
    """
    name = func._schema.name
    if name == "aten::_local_scalar_dense":
        return _one(args[0])
    if name == "aten::_to_copy" and is_host(kwargs.get("device")):
        return _on_host(args[0], 1)
    if name == "aten::copy_" and not args[0].is_meta:
        return args[0]
    return _result(func, *map_tensors((args, kwargs), _to_meta))


def result_of_function(func: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    """Returns a result for a refused function of torch, as `result_of_operation` does."""
    name = getattr(func, "__name__", "")
    if name == "allclose":
        return True
    if name == "numpy":
        return _on_host(args[0], 1).numpy()
    return _result(func, args, kwargs)


def _result(func: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    try:
        return func(*args, **kwargs)
    except (Error, Unfinished):
        pass
    except Exception:  # of torch, which cannot infer the shape
        pass
    for value in (1, 0):
        result = _run_on_host(func, args, kwargs, value)
        if result is not None:
            return result
    raise Unfinished(f"the shape of {_name(func)}'s result is not known")


def _run_on_host(func: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any], value: int) -> Optional[Any]:
    """Runs the function on host tensors filled with `value` and returns its result on "meta"; None if it fails."""
    if sum(tensor.numel() for tensor in flatten((args, kwargs))) > _MOST_ELEMENTS:
        return None
    with context.on_host():
        host_args, host_kwargs = map_tensors((args, kwargs), lambda tensor: _on_host(tensor, value))
        try:
            result = func(*host_args, **host_kwargs)
        except Exception:
            return None
        return map_tensors(result, _to_meta)


def _one(tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _on_host(tensor: Tensor, value: int) -> Tensor:
    """Returns a host tensor filled with `value` that has the shape of a tensor on "meta", or a host tensor itself."""
    if not tensor.is_meta:
        return tensor
    if tensor.numel() > _MOST_ELEMENTS:
        raise Unfinished(f"a tensor of shape {list(tensor.shape)} is too large to stand in for on the host")
    with context.on_host():
        return torch.full(tensor.shape, value, dtype=tensor.dtype, device="cpu")


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_like(tensor, device="meta")


def _name(func: Any) -> str:
    schema = getattr(func, "_schema", None)
    return str(schema.name if schema is not None else getattr(func, "__name__", func))

"""Operations of libraries outside torch: those of PyTorch Geometric that PopTorch handles, and the others' refusals.

PopTorch handles six of them (RegisterMetaOps.cpp.inc:459-472, popart_canonicalization/PyGTorchScatterOps.cpp,
PyGTorchSplineConvOps.cpp, pyg_torch_cluster/GridOp.cpp). The libraries' own kernels read the memory of CPU tensors, so
tracing replaces them by the functions of this module, whose results have the right shapes and depend on the inputs.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.simulator.errors import cpp_error

_OF_TORCH = ("aten", "prims")


def operation_name(func: Any) -> str:
    """Returns the name of an operation called through torch.ops, as in "torch_scatter::scatter_max", or else ""."""
    return str(getattr(getattr(func, "overloadpacket", func), "_qualified_op_name", ""))


def is_outside_torch(name: str) -> bool:
    """Tells whether an operation, as in "torch_scatter::scatter_max", comes from a library outside torch."""
    return "::" in name and name.partition("::")[0] not in _OF_TORCH


def traced_form(name: str) -> Optional[Callable[..., Any]]:
    """Returns the function that stands in for an operation while a model is traced, if PopTorch handles it."""
    return _TRACED.get(name)


def refusal(names: str) -> Exception:
    """Returns the error for operations that PopTorch records and cannot lower to PopART (LowerToPopart.cpp:996)."""
    return cpp_error(
        f"Couldn't find a registered operation for node {names}: PopTorch handles {', '.join(sorted(_TRACED))} and no "
        "other operations from outside torch; write it with operations of torch, or as poptorch.custom_op"
    )


@contextmanager
def named_refusal(func: Any) -> Iterator[None]:
    """Replaces a failed assertion in the kernel of an operation outside torch by PopTorch's refusal."""
    try:
        yield
    except RuntimeError as failed:
        name = operation_name(func)
        if "INTERNAL ASSERT FAILED" not in str(failed) or not is_outside_torch(name):
            raise
        raise refusal(name) from failed


def check_kernel(func: Any) -> None:
    """Raises NotImplementedError for an operation whose kernel an IPU would run part by part."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeExplicitAutograd"):
        raise NotImplementedError(
            f"{func._schema.name} has a CompositeExplicitAutograd kernel, whose parts the simulator cannot see; "
            "register the kernel for CompositeImplicitAutograd"
        )


def _scatter(
    src: Tensor, index: Tensor, dim: int, out: Optional[Tensor] = None, dim_size: Optional[int] = None
) -> Tensor:
    """Returns `out`, or else a tensor of `dim_size` elements along `dim`."""
    shape = list(src.shape if out is None else out.shape)
    if out is None and dim_size is None:
        raise cpp_error(
            "You must provide either an output parameter or specify dim_size so the output shape may be inferred"
        )
    if out is None and dim_size is not None:
        shape[dim] = dim_size
    elif dim_size is not None and shape[dim] != dim_size:
        raise cpp_error(
            f"dim_size = {dim_size} expected to be the same as out.shape()[dim] = {shape[dim]}, dim = {dim % src.dim()}"
        )
    result = _filled(src, shape)
    return result if out is None else out.copy_(result)


def _scatter_and_indices(
    src: Tensor, index: Tensor, dim: int, out: Optional[Tensor] = None, dim_size: Optional[int] = None
) -> Tuple[Tensor, Tensor]:
    """Returns the extrema and their positions in `src`."""
    result = _scatter(src, index, dim, out, dim_size)
    return result, _filled(index, list(result.shape))


def _grid(pos: Tensor, size: Tensor, start: Optional[Tensor] = None, end: Optional[Tensor] = None) -> Tensor:
    """Returns the voxel of each point."""
    flat = pos.reshape(pos.shape[0], -1)
    if size.numel() != flat.shape[1]:
        raise cpp_error("grid: size.numel() == pos.size(1)")
    return flat.sum(1).long()


def _spline_basis(pseudo: Tensor, kernel_size: Tensor, is_open_spline: Tensor, degree: int) -> Tuple[Tensor, Tensor]:
    """Returns the weights of the splines at each edge, and the splines' indices."""
    shape = [pseudo.shape[0], (degree + 1) ** pseudo.shape[1]]
    return _filled(pseudo, shape), _filled(kernel_size, shape)


def _spline_weighting(input: Tensor, weight: Tensor, basis: Tensor, weight_index: Tensor) -> Tensor:
    """Returns the features of each edge."""
    return _filled(input, [input.shape[0], weight.shape[2]]) + weight.sum() * basis.sum()


def _filled(source: Tensor, shape: List[int]) -> Tensor:
    """Returns a tensor of `shape` that is computed from `source`."""
    return source.sum(dtype=source.dtype).expand(shape).clone()


_TRACED: Dict[str, Callable[..., Any]] = {
    "torch_cluster::grid": _grid,
    "torch_scatter::scatter_max": _scatter_and_indices,
    "torch_scatter::scatter_min": _scatter_and_indices,
    "torch_scatter::scatter_mul": _scatter,
    "torch_spline_conv::spline_basis": _spline_basis,
    "torch_spline_conv::spline_weighting": _spline_weighting,
}

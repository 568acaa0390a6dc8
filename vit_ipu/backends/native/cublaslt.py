"""Matrix products by NVIDIA's cuBLASLt, with the fastest of the algorithms that it proposes for a shape.

torch takes the first proposal. For the shapes of a ViT-B on an H200 another one is up to a quarter faster. The library
is the one that torch has loaded; its C interface is documented at https://docs.nvidia.com/cuda/cublas (cublasLt API).
Matrices are bfloat16, sums float32. cuBLASLt's matrices are column by column, so it computes the transposed product.
"""

from __future__ import annotations

import ctypes
import functools
import statistics
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

_BFLOAT16, _FLOAT32, _COMPUTE_FLOAT32 = 14, 0, 68
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS_POINTER = 3, 4, 7, 8
"""Attributes of a product's description."""
_BIAS = 4
"""Epilogue that adds a bias."""
_MAX_WORKSPACE = 1
"""Attribute of a preference."""
_WORKSPACE_BYTES = 64 << 20
_NUM_PROPOSALS = 24
_NUM_FINALISTS, _NUM_TIMINGS = 6, 9
"""Proposals that are timed in turns after a first round, and the number of turns."""
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def is_available() -> bool:
    """Tells whether this process can call cuBLASLt on its GPU."""
    try:
        return torch.cuda.is_available() and _library() is not None
    except (OSError, AttributeError, RuntimeError):
        return False


def product(a: Tensor, b: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Returns a @ b + bias, of (M, K), (K, N) and (N,). Each matrix must be contiguous, or the transpose of one."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    _plan(a.device, tuple(a.shape), b.shape[1], a.is_contiguous(), b.is_contiguous(), bias is not None)(a, b, bias, out)
    return out


@functools.lru_cache(maxsize=None)
def _plan(
    device: torch.device, shape: Tuple[int, int], columns: int, a_in_rows: bool, b_in_rows: bool, has_bias: bool
) -> _Plan:
    return _Plan(device, *shape, columns, a_in_rows=a_in_rows, b_in_rows=b_in_rows, has_bias=has_bias)


class _Plan:
    """The product of one shape, (M, K) @ (K, N), by its fastest algorithm, which the first call finds."""

    def __init__(
        self, device: torch.device, m: int, k: int, n: int, *, a_in_rows: bool, b_in_rows: bool, has_bias: bool
    ) -> None:
        self._device, self._has_bias = device, has_bias
        self._description = _created("MatmulDesc", _COMPUTE_FLOAT32, _FLOAT32)
        self._set(_TRANSPOSE_A, ctypes.c_int(0 if b_in_rows else 1))
        self._set(_TRANSPOSE_B, ctypes.c_int(0 if a_in_rows else 1))
        if has_bias:
            self._set(_EPILOGUE, ctypes.c_int(_BIAS))
        self._first = _layout(n, k) if b_in_rows else _layout(k, n)
        self._second = _layout(k, m) if a_in_rows else _layout(m, k)
        self._result = _layout(n, m)
        self._proposals = self._propose()
        self._chosen: Optional[_Proposal] = None

    def __call__(self, a: Tensor, b: Tensor, bias: Optional[Tensor], out: Tensor) -> None:
        if bias is not None:
            self._set(_BIAS_POINTER, ctypes.c_void_p(bias.data_ptr()))
        if self._chosen is None:
            self._chosen = self._fastest(a, b, out)
        self._run(self._chosen, a, b, out)

    def _set(self, attribute: int, value: Any) -> None:
        _call("MatmulDescSetAttribute", self._description, attribute, ctypes.byref(value), ctypes.sizeof(value))

    def _propose(self) -> List[_Proposal]:
        preference, most = _created("MatmulPreference"), ctypes.c_size_t(_WORKSPACE_BYTES)
        size = ctypes.sizeof(most)
        _call("MatmulPreferenceSetAttribute", preference, _MAX_WORKSPACE, ctypes.byref(most), size)
        found, count = (_Proposal * _NUM_PROPOSALS)(), ctypes.c_int()
        matrices = self._first, self._second, self._result, self._result
        arguments = (_handle(self._device), self._description, *matrices, preference, _NUM_PROPOSALS)
        _call("MatmulAlgoGetHeuristic", *arguments, found, ctypes.byref(count))
        return [proposal for proposal in found[: count.value] if proposal.state == 0]

    def _fastest(self, a: Tensor, b: Tensor, out: Tensor) -> _Proposal:
        if torch.cuda.is_current_stream_capturing():
            return self._proposals[0]
        best = self._by_time(self._proposals, 2, a, b, out)[:_NUM_FINALISTS]
        return self._by_time(best, _NUM_TIMINGS, a, b, out)[0]

    def _by_time(self, proposals: List[_Proposal], turns: int, a: Tensor, b: Tensor, out: Tensor) -> List[_Proposal]:
        """Returns proposals, fastest first; they take turns, because a GPU's clock changes with its temperature."""
        times: List[List[float]] = [[] for _ in proposals]
        for _ in range(turns):
            for proposal, found in zip(proposals, times):
                found.append(self._milliseconds(proposal, a, b, out))
        order = sorted(range(len(proposals)), key=lambda number: statistics.median_low(times[number]))
        return [proposals[number] for number in order]

    def _milliseconds(self, proposal: _Proposal, a: Tensor, b: Tensor, out: Tensor) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._run(proposal, a, b, out)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _run(self, proposal: _Proposal, a: Tensor, b: Tensor, out: Tensor) -> None:
        pointer = ctypes.c_void_p
        _call(
            "Matmul",
            _handle(self._device),
            self._description,
            ctypes.byref(_ONE),
            pointer(b.data_ptr()),
            self._first,
            pointer(a.data_ptr()),
            self._second,
            ctypes.byref(_ZERO),
            pointer(out.data_ptr()),
            self._result,
            pointer(out.data_ptr()),
            self._result,
            ctypes.byref(proposal.algorithm),
            pointer(_workspace(self._device).data_ptr()),
            ctypes.c_size_t(proposal.workspace),
            pointer(torch.cuda.current_stream(self._device).cuda_stream),
        )


def _layout(rows: int, columns: int) -> ctypes.c_void_p:
    """Returns the layout of a matrix that lies column by column."""
    return _created("MatrixLayout", _BFLOAT16, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))


def _created(what: str, *arguments: Any) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(f"{what}Create", ctypes.byref(made), *arguments)
    return made


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), f"cublasLt{name}")(*arguments)
    if status != 0:
        raise RuntimeError(f"cublasLt{name} failed with status {status}")


@functools.lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).partition('.')[0]}")


_HANDLES: Dict[torch.device, ctypes.c_void_p] = {}
_WORKSPACES: Dict[torch.device, Tensor] = {}


def _handle(device: torch.device) -> ctypes.c_void_p:
    if device not in _HANDLES:
        with torch.cuda.device(device):
            handle = ctypes.c_void_p()
            status = _library().cublasLtCreate(ctypes.byref(handle))
        if status != 0:
            raise RuntimeError(f"cublasLtCreate failed with status {status}")
        _HANDLES[device] = handle
    return _HANDLES[device]


def _workspace(device: torch.device) -> Tensor:
    """Returns the memory in which algorithms keep partial results."""
    if device not in _WORKSPACES:
        _WORKSPACES[device] = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    return _WORKSPACES[device]

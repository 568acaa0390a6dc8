"""The functions of kernels.c on a CUDA device, in Triton.

They give the same bits as plain torch but for the order in which tensor cores add the products of a chunk. The import
fails without Triton, and with a version before 3.
"""

# mypy: disable-error-code="untyped-decorator,import-untyped,import-not-found,no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from vit_ipu.simulator.arithmetic.random_bits import LANES, SLOTS, Operation

if int(triton.__version__.partition(".")[0]) < 3:
    raise ImportError(f"Triton {triton.__version__} is too old")

_LANES, _SLOTS = tl.constexpr(LANES), tl.constexpr(SLOTS)
_DROPPED = tl.constexpr(0x1FFF)
_SMALLEST_NORMAL = tl.constexpr(0x38800000)
_LARGEST = tl.constexpr(0x477FE000)
_BEYOND = tl.constexpr(0x477FF000)
_INFINITE = tl.constexpr(0x7F800000)
_NUM_COUNTERS = 128
"""Counters of a program that rounds; each gives SLOTS draws."""
_NUM_WARPS = {16: 1, 32: 2, 64: 8}
"""Warps of a program that multiplies, by the rows or columns of its tile."""


@triton.jit
def _clip(found, size, sign):
    """Clips finite values that were rounded beyond the largest one; infinities and NaN stay."""
    found = tl.where(size < _INFINITE, tl.minimum(found, _LARGEST), size)
    return (found | sign).to(tl.float32, bitcast=True)


@triton.jit
def _to_a_neighbour(values, draws):
    bits = values.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    shift = tl.where(size < _SMALLEST_NORMAL, _SMALLEST_NORMAL, 0).to(tl.float32, bitcast=True)
    near = (size.to(tl.float32, bitcast=True) + shift).to(tl.int32, bitcast=True)
    cut = ((near + draws) & ~_DROPPED).to(tl.float32, bitcast=True) - shift
    return _clip(cut.to(tl.int32, bitcast=True), size, bits ^ size)


@triton.jit
def _to_nearest(values):
    """Leaves the rounding to the device's own conversion."""
    bits = values.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    nearest = size.to(tl.float32, bitcast=True).to(tl.float16).to(tl.float32)
    return _clip(nearest.to(tl.int32, bitcast=True), size, bits ^ size)


@triton.jit
def _words(counters, third, seed, number):
    """Returns four words of random bits for each counter, a tensor of int64."""
    key = seed.to(tl.int64) ^ ((number >> 32) << 32)
    zeros = counters.to(tl.uint32) * 0
    return tl.philox(
        key,
        counters.to(tl.uint32),
        (counters >> 32).to(tl.uint32),
        zeros + third.to(tl.uint32),
        zeros + number.to(tl.uint32),
    )


@triton.jit
def _draw(w0, w1, w2, w3, SLOT: tl.constexpr):
    if SLOT // 2 == 0:
        word = w0
    elif SLOT // 2 == 1:
        word = w1
    elif SLOT // 2 == 2:
        word = w2
    else:
        word = w3
    return ((word >> (16 * (SLOT % 2))) & _DROPPED).to(tl.int32)


@triton.jit(do_not_specialize=["count", "seed", "number"])
def _round(
    values,
    results,
    clipped,
    base,
    count,
    seed,
    number,
    STOCHASTIC: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    counters = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)
    if STOCHASTIC:
        operation = tl.load(base) + number
        w0, w1, w2, w3 = _words(counters, counters * 0, seed, operation)
    too_large = tl.zeros([COUNTERS], tl.int32)
    for slot in tl.static_range(_SLOTS):
        places = counters // _LANES * (_LANES * _SLOTS) + slot * _LANES + counters % _LANES
        value = tl.load(values + places, mask=places < count, other=0.0)
        size = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        too_large += ((size >= _BEYOND) & (size < _INFINITE)).to(tl.int32)
        if STOCHASTIC:  # noqa: SIM108  # each branch is compiled only if it is used
            rounded = _to_a_neighbour(value, _draw(w0, w1, w2, w3, slot))
        else:
            rounded = _to_nearest(value)
        tl.store(results + places, rounded.to(tl.float16), mask=places < count)
    total = tl.sum(too_large, 0)
    if total > 0:
        tl.atomic_add(clipped, total.to(tl.int64))


@triton.jit(do_not_specialize=["rows", "columns", "inner", "left_batch", "right_batch", "seed", "number"])
def _multiply(
    left,
    right,
    results,
    clipped,
    base,
    rows,
    columns,
    inner,
    left_batch,
    left_row,
    left_inner,
    right_batch,
    right_inner,
    right_column,
    seed,
    number,
    STOCHASTIC: tl.constexpr,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    matrix = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    elements = (matrix * rows + row) * columns + column
    k = tl.arange(0, PADDED)
    lefts = left + matrix * left_batch + row * left_row + k[None, :] * left_inner
    rights = right + matrix * right_batch + column * right_column + k[:, None] * right_inner
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    largest = tl.zeros([ROWS, COLUMNS], tl.int32)
    if STOCHASTIC:
        operation = tl.load(base) + number
    num_groups = inner // (CHUNK * _SLOTS)
    for group in range(num_groups):
        if STOCHASTIC:
            w0, w1, w2, w3 = _words(elements, elements * 0 + group, seed, operation)
        for slot in tl.static_range(_SLOTS):
            start = (group * _SLOTS + slot) * CHUNK
            a = tl.load(lefts + start * left_inner, mask=(k[None, :] < CHUNK) & (row < rows), other=0.0)
            b = tl.load(rights + start * right_inner, mask=(k[:, None] < CHUNK) & (column < columns), other=0.0)
            total += tl.dot(a, b)
            largest = tl.maximum(largest, total.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
            if STOCHASTIC:  # noqa: SIM108  # each branch is compiled only if it is used
                total = _to_a_neighbour(total, _draw(w0, w1, w2, w3, slot))
            else:
                total = _to_nearest(total)
    done = num_groups * CHUNK * _SLOTS
    if STOCHASTIC:
        w0, w1, w2, w3 = _words(elements, elements * 0 + num_groups, seed, operation)
    for slot in range(tl.cdiv(inner - done, CHUNK)):
        start = done + slot * CHUNK
        inside = (k < CHUNK) & (start + k < inner)
        a = tl.load(lefts + start * left_inner, mask=inside[None, :] & (row < rows), other=0.0)
        b = tl.load(rights + start * right_inner, mask=inside[:, None] & (column < columns), other=0.0)
        total += tl.dot(a, b)
        largest = tl.maximum(largest, total.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        if STOCHASTIC:
            low = tl.where(slot < 2, w0, w1)
            high = tl.where(slot < 6, w2, w3)
            word = tl.where(slot < 4, low, high)
            total = _to_a_neighbour(total, ((word >> (16 * (slot % 2))) & _DROPPED).to(tl.int32))
        else:
            total = _to_nearest(total)
    tl.store(results + elements, total.to(tl.float16), mask=(row < rows) & (column < columns))
    num_clipped = tl.sum(tl.sum(((largest >= _BEYOND) & (largest < _INFINITE)).to(tl.int32), 1), 0)
    if num_clipped > 0:
        tl.atomic_add(clipped, num_clipped.to(tl.int64))


def _tile_of(size: int) -> int:
    """Returns the rows or columns of a tile: the largest of which few are outside of a matrix."""
    return next((tile for tile in (64, 32) if triton.cdiv(size, tile) * tile <= 1.5 * size), 16)


class CudaKernels:
    """Triton's functions on tensors of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._zero = torch.zeros(1, dtype=torch.int64, device=device)

    def round(self, values: Tensor, results: Tensor, clipped: Tensor, operation: Optional[Operation]) -> None:
        """Rounds contiguous float32 `values` into float16 `results`; adds to `clipped` how many were too large."""
        seed, number, base = self._key(operation)
        count = values.numel()
        grid = (triton.cdiv(count, _NUM_COUNTERS * SLOTS),)
        with torch.cuda.device(values.device):
            _round[grid](
                values, results, clipped, base, count, seed, number, operation is not None, _NUM_COUNTERS, num_warps=4
            )

    def multiply(
        self,
        left: Tensor,
        right: Tensor,
        results: Tensor,
        clipped: Tensor,
        chunk: int,
        operation: Optional[Operation],
    ) -> None:
        """Multiplies float16 (batch, M, K) and (batch, K, N) into `results`; rounds after each chunk of K."""
        left, right = left.half(), right.half()
        seed, number, base = self._key(operation)
        batch, rows, inner = left.shape
        columns = right.shape[2]
        tile = _tile_of(rows), _tile_of(columns)
        grid = (triton.cdiv(columns, tile[1]), triton.cdiv(rows, tile[0]), batch)
        padded = max(16, triton.next_power_of_2(chunk))
        strides = (*left.stride(), right.stride(0), right.stride(1), right.stride(2))
        with torch.cuda.device(left.device):
            _multiply[grid](
                left, right, results, clipped, base, rows, columns, inner, *strides, seed, number,
                operation is not None, chunk, padded, *tile, num_warps=_NUM_WARPS[max(tile)],
            )  # fmt: skip

    def _key(self, operation: Optional[Operation]) -> Any:
        if operation is None:
            return 0, 0, self._zero
        return operation.seed, operation.number, self._zero if operation.base is None else operation.base

"""Rounding to float16 as on an IPU: to nearest, or stochastically, and to the largest finite value on overflow.

An IPU clips finite values that are too large, unless NaN on overflow is asked for (popart
removeunnecessarylossgradcastpattern.hpp:30-36, poplibs lib/popfloat/CastToHalf.cpp:97-106); infinities stay infinite.
"""

from __future__ import annotations

import math
import secrets
from typing import Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.compiled import Factors, HostKernels, Kernels, host_kernels, kernels_for
from vit_ipu.simulator.arithmetic.floating_point_checks import floating_point_exception
from vit_ipu.simulator.arithmetic.random_bits import DROPPED, DrawsOfChunks, Operation, draws_of_elements

MAX = 65504.0
_LARGEST_THAT_ROUNDS_DOWN = 65519.996  # float32 below 65520, half way from MAX to the next step of float16
_SMALLEST_NORMAL = 2.0**-14
_SCRAMBLE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio
_BYTES = 8
"""Bytes of each of the two numbers of the random state."""


class _Snapshot(NamedTuple):
    num_operations: int
    clipped: Dict[torch.device, Tensor]


class Rounding:
    """Rounds float32 to float16, and multiplies with rounded partial sums; counts what it clips.

    The random bits of stochastic rounding depend on the seed and on how many roundings there were. With `checked`, a
    finite value that is too large raises Error, as with floating-point exceptions on an IPU.
    """

    def __init__(
        self, *, stochastic: bool = False, seed: Optional[int] = None, checked: bool = False, compiled: bool = True
    ) -> None:
        """`compiled`: use the compiled functions, which give the same results as plain torch."""
        self.is_stochastic, self._is_checked, self._is_compiled = stochastic, checked, compiled
        # torch's generator may have the same seed: rounding must not correlate with data or dropout drawn from it
        self._seed = secrets.randbits(63) if seed is None else (seed * _SCRAMBLE + 1) % 2**63
        self._num_operations = 0
        self._base: Optional[Tensor] = None
        self._recorded_base: Optional[Tensor] = None
        self._clipped: Dict[torch.device, Tensor] = {}
        self._clipped_on_host = 0
        """Address of the host's counter."""

    def __call__(self, values: Tensor) -> Tensor:
        """Returns the nearest float16, ties to even; or one of the two neighbours, at random so as to keep the mean."""
        if values.dtype == torch.float16:
            return values
        values = self._within_range(values.float())
        if not values.numel():
            return values.to(torch.float16)
        kernels, operation = self._kernels(values.device), self._next_operation()
        if kernels is not None:
            results = torch.empty(values.shape, dtype=torch.float16, device=values.device)
            kernels.round(values.contiguous(), results, self._counter(values.device), operation)
            return results
        self._count(values)
        if operation is None:
            return to_nearest(values)
        draws = draws_of_elements(values.numel(), operation, values.device)
        return to_a_neighbour(values, draws.view(values.shape)).to(torch.float16)

    def in_float32(self, values: Tensor) -> Tensor:
        """Returns what a call returns, but in float32; may overwrite the values."""
        kernels, count = self._host_kernels(values), values.numel()
        if kernels is None or not count or values.dtype != torch.float32:
            return self(values).float()
        if not values.is_contiguous():
            values = values.contiguous()
        self._num_operations += self.is_stochastic
        kernels.round_in_place(
            values.data_ptr(), count, self._clipped_on_host, self.is_stochastic, self._seed, self._num_operations
        )
        return values

    def accumulate(self, sums: Tensor, values: Tensor, factors: Factors = (1.0, 1.0)) -> Tensor:
        """Returns the rounded sums of sum * factors[0] and value * factors[1], all float16; may overwrite `sums`."""
        kernels = self._host_kernels(sums)
        if kernels is None or not sums.is_contiguous():
            return self(sums.float() * factors[0] + values.float() * factors[1])
        counter, operation = self._counter(sums.device), self._next_operation()
        kernels.accumulate(sums, values.contiguous(), factors, counter, operation)
        return sums

    def product(self, left: Tensor, right: Tensor, chunk: int, *, dtype: torch.dtype = torch.float16) -> Tensor:
        """Returns the product of float16 values (..., M, K) and (..., K, N) as float16, or so rounded in float32.

        The running sum is rounded after each chunk of K.
        """
        batch, shape = left.shape[:-2], (left.shape[-2], right.shape[-1])
        left, right = (tensor.reshape(math.prod(batch), *tensor.shape[-2:]) for tensor in (left, right))
        operation = self._next_operation()
        kernels = None if self._is_checked else self._kernels(left.device)
        if kernels is not None:
            results = torch.empty((len(left), *shape), dtype=dtype, device=left.device)
            kernels.multiply(left, right, results, self._counter(left.device), chunk, operation)
        else:
            results = self._plain_product(left.float(), right.float(), chunk, operation).to(dtype)
        return results.view(*batch, *shape)

    def _plain_product(self, left: Tensor, right: Tensor, chunk: int, operation: Optional[Operation]) -> Tensor:
        """Adds one product after the other, in the order of the compiled functions, so that the results are equal."""
        total = torch.zeros(*left.shape[:2], right.shape[2], device=left.device)
        largest = torch.zeros_like(total)
        draws = None if operation is None else DrawsOfChunks(total.numel(), operation, left.device)
        for number, start in enumerate(range(0, left.shape[2], chunk)):
            part = torch.zeros_like(total)
            for k in range(start, min(start + chunk, left.shape[2])):
                part.addcmul_(left[:, :, k : k + 1], right[:, k : k + 1, :])
            total = self._within_range(total + part)
            largest = torch.maximum(largest, total.abs())
            total = (
                to_nearest(total).float()
                if draws is None
                else to_a_neighbour(total, draws.after(number).view(total.shape))
            )
        self._count(largest)
        return total.to(torch.float16)

    def _host_kernels(self, values: Tensor) -> Optional[HostKernels]:
        """Returns the compiled functions that work in place, or None if plain torch computes."""
        if not values.is_cpu or self._is_checked or not self._is_compiled:
            return None
        if not self._clipped_on_host:
            self._clipped_on_host = self._counter(values.device).data_ptr()
        return host_kernels()

    def _kernels(self, device: torch.device) -> Optional[Kernels]:
        """Returns the compiled functions for a device, or None if plain torch computes there."""
        return kernels_for(device) if self._is_compiled else None

    def _count(self, values: Tensor) -> None:
        """Counts the finite values that are too large."""
        if not _is_in_range(values):
            self._counter(values.device).add_((values.isfinite() & (values.abs() > _LARGEST_THAT_ROUNDS_DOWN)).sum())

    def _counter(self, device: torch.device) -> Tensor:
        """Returns the number of clipped values on a device."""
        if device not in self._clipped:
            self._clipped[device] = torch.zeros(1, dtype=torch.int64, device=device)
        return self._clipped[device]

    @property
    def num_clipped(self) -> int:
        """How many finite values were too large; reading it waits for the device."""
        return sum(int(counter) for counter in self._clipped.values())

    def _next_operation(self) -> Optional[Operation]:
        """Returns the key of the random bits of the next operation; None if rounding is not stochastic."""
        if not self.is_stochastic:
            return None
        self._num_operations += 1
        return Operation(self._seed, self._num_operations, self._base)

    def _within_range(self, values: Tensor) -> Tensor:
        """Returns the values. Raises Error if overflow is checked and a finite value rounds beyond float16's range."""
        if self._is_checked:
            too_large = values[values.isfinite() & (values.abs() > _LARGEST_THAT_ROUNDS_DOWN)]
            if too_large.numel():
                raise floating_point_exception(f"{too_large[0].item():g} does not fit in float16 (at most {MAX:g})")
        return values

    # ------------------------------------------------------------------------------- CUDA graphs

    def snapshot(self) -> _Snapshot:
        """Returns all that `restore` sets again."""
        return _Snapshot(self._num_operations, {device: count.clone() for device, count in self._clipped.items()})

    def restore(self, snapshot: _Snapshot) -> None:
        self._num_operations = snapshot.num_operations
        for device, counter in self._clipped.items():
            counter.copy_(snapshot.clipped[device]) if device in snapshot.clipped else counter.zero_()

    def start_recording(self, device: torch.device) -> None:
        """From here on, roundings are numbered from a base on the device, which `replay` sets."""
        if self._recorded_base is None:
            self._recorded_base = torch.zeros(1, dtype=torch.int64, device=device)
        self._base, self._num_operations = self._recorded_base, 0

    def stop_recording(self) -> int:
        """Ends `start_recording`; returns how many roundings were recorded."""
        self._base, count = None, self._num_operations
        return count

    def replay(self, run: Callable[[], None], num_operations: int) -> None:
        """Runs a graph with so many roundings, which get the next numbers."""
        if self._recorded_base is not None:
            self._recorded_base.fill_(self._num_operations)
        run()
        self._num_operations += num_operations

    @property
    def state(self) -> Tensor:
        """The random state, as bytes: the seed and the number of roundings."""
        numbers = b"".join(number.to_bytes(_BYTES, "little") for number in (self._seed, self._num_operations))
        return torch.tensor(list(numbers), dtype=torch.uint8)

    @state.setter
    def state(self, state: Tensor) -> None:
        """Raises ValueError for the state of an earlier version, whose random numbers had another generator."""
        numbers = bytes(state.tolist())
        if len(numbers) != 2 * _BYTES:
            raise ValueError(
                f"a state of stochastic rounding has {2 * _BYTES} bytes, not {len(numbers)}: an earlier version wrote "
                "it; start the training again"
            )
        self._seed, self._num_operations = (
            int.from_bytes(part, "little") for part in (numbers[:_BYTES], numbers[_BYTES:])
        )


def to_a_neighbour(values: Tensor, draws: Tensor) -> Tensor:
    """Returns float32 values on float16's grid: towards zero, or away with the probability of the remainder.

    `draws` are 13 random bits for each value. They are added below the 10 bits of float16's mantissa, and these 13 bits
    are cut off. For values that are subnormal in float16, the smallest normal is added during this step, so that the
    spacing is that of the subnormals; float32 then drops less than 2^-13 of a spacing. Finite values beyond the largest
    are clipped.
    """
    size = values.abs()
    shift = torch.where(size < _SMALLEST_NORMAL, _SMALLEST_NORMAL, 0.0)
    near = ((size + shift).view(torch.int32) + draws & ~DROPPED).view(torch.float32) - shift
    return _clipped(torch.where(values.isfinite(), near, size).copysign(values))


def to_nearest(values: Tensor) -> Tensor:
    """Returns the nearest float16 of float32 values; finite values that are too large are clipped."""
    return _clipped(values).to(torch.float16)


def rounded(values: Tensor, dtype: torch.dtype, rounding: Optional[Rounding]) -> Tensor:
    """Returns the values in `dtype`, rounded to float16 by `rounding` if given."""
    if dtype == torch.float16 and rounding is not None:
        return rounding(values)
    return values.to(dtype)


def _is_in_range(values: Tensor) -> bool:
    """Tells whether no value is NaN or too large; False off the CPU, where a check would wait for the device."""
    if values.device.type != "cpu":
        return False
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return low.item() >= -_LARGEST_THAT_ROUNDS_DOWN and high.item() <= _LARGEST_THAT_ROUNDS_DOWN


def _clipped(values: Tensor) -> Tensor:
    """Returns the values, finite ones clipped to float16's range."""
    if _is_in_range(values):
        return values
    return torch.where(torch.isinf(values), values, values.clamp(-MAX, MAX))


def widened(tensor: Tensor) -> Tensor:
    """Returns a float16 tensor as float32, any other tensor unchanged."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor

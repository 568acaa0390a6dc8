"""Rounding to float16 as on an IPU: to nearest, or stochastically, and to the largest finite value on overflow.

An IPU clips finite values that are too large, unless NaN on overflow is asked for (popart
removeunnecessarylossgradcastpattern.hpp:30-36, poplibs lib/popfloat/CastToHalf.cpp:97-106); infinities stay infinite.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ipu.simulator.arithmetic.floating_point_checks import floating_point_exception

MAX = 65504.0
_LARGEST_THAT_ROUNDS_DOWN = 65519.996  # below half way from MAX to the next step of float16
_SMALLEST_NORMAL = 2.0**-14
_DROPPED = 0x1FFF  # bits of float32's mantissa that float16 lacks
_FOUR_TIMES_13_BITS = np.uint64(0x1FFF1FFF1FFF1FFF)
_SCRAMBLE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


class Rounding:
    """Rounds float32 to float16; stochastic rounding draws from its own generator.

    With `checked`, a finite value that is too large raises Error, as with floating-point exceptions on an IPU.
    """

    def __init__(
        self, *, stochastic: bool = False, seed: Optional[int] = None, device: str = "cpu", checked: bool = False
    ) -> None:
        self.is_stochastic, self._is_checked = stochastic, checked
        # torch's generator may have the same seed: rounding must not correlate with data or dropout drawn from it
        scrambled = None if seed is None else (seed * _SCRAMBLE + 1) % 2**63
        self._bits: RandomBits = (_HostBits if device == "cpu" else _DeviceBits)(scrambled, device)

    def __call__(self, values: Tensor) -> Tensor:
        """Returns the nearest float16, ties to even; or one of the two neighbours, at random so as to keep the mean."""
        if values.dtype == torch.float16:
            return values
        values = self._within_range(values.float())
        if not (self.is_stochastic and values.numel()):
            return to_nearest(values)
        return self._to_a_neighbour(values.contiguous()).to(torch.float16)

    def in_float32(self, values: Tensor) -> Tensor:
        """Rounds contiguous float32 values to float16 values, returned as float32."""
        values = self._within_range(values)
        if self.is_stochastic and values.numel():
            return self._to_a_neighbour(values)
        return to_nearest(values).float()

    def _within_range(self, values: Tensor) -> Tensor:
        """Returns the values. Raises Error if overflow is checked and a finite value rounds beyond float16's range."""
        if self._is_checked:
            too_large = values[values.isfinite() & (values.abs() > _LARGEST_THAT_ROUNDS_DOWN)]
            if too_large.numel():
                raise floating_point_exception(f"{too_large[0].item():g} does not fit in float16 (at most {MAX:g})")
        return values

    @property
    def state(self) -> Tensor:
        """The random state, as bytes."""
        return self._bits.state

    @state.setter
    def state(self, state: Tensor) -> None:
        self._bits.state = state

    def _to_a_neighbour(self, values: Tensor) -> Tensor:
        """Returns float32 values on float16's grid: towards zero, or away with the probability of the remainder.

        13 random bits are added below the 10 bits of float16's mantissa, and these 13 bits are cut off. For values that
        are subnormal in float16, the smallest normal is added during this step, so that the spacing is that of the
        subnormals; float32 then drops less than 2^-13 of a spacing. Finite values beyond the largest are clipped.
        """
        near_zero = values.clamp(-1.0, 1.0)
        small = near_zero.sub_(F.hardshrink(near_zero, _SMALLEST_NORMAL)).sign_()  # the sign, or 0 for normal values
        near = values.add(small, alpha=_SMALLEST_NORMAL)
        near.view(torch.int32).add_(self._bits.draw(values)).bitwise_and_(~_DROPPED)
        near.sub_(small, alpha=_SMALLEST_NORMAL).copysign_(values)  # -0 stays -0
        return near if _is_in_range(near, MAX) else _clipped(near)


class RandomBits:
    """13 random bits for each element of a tensor."""

    state: Tensor

    def draw(self, like: Tensor) -> Tensor:
        """Integers from 0 to 8191 in the shape of `like`."""
        raise NotImplementedError


class _HostBits(RandomBits):
    """Random bits from numpy's SFC64, which makes four at a time, several times as fast as torch's generator."""

    def __init__(self, seed: Optional[int], device: str) -> None:
        self._generator = np.random.SFC64(seed)

    def draw(self, like: Tensor) -> Tensor:
        raw = self._generator.random_raw(like.numel() // 4 + 1)
        raw &= _FOUR_TIMES_13_BITS
        return torch.from_numpy(raw.view(np.int16)[: like.numel()]).view(like.shape)

    @property
    def state(self) -> Tensor:  # type: ignore[override]
        raw = self._generator.state["state"]["state"]
        return torch.from_numpy(raw.view(np.uint8).copy())

    @state.setter
    def state(self, state: Tensor) -> None:
        full_state = self._generator.state
        full_state["state"]["state"] = state.cpu().numpy().copy().view(np.uint64)
        self._generator.state = full_state


class _DeviceBits(RandomBits):
    """Random bits from torch's generator on the device."""

    def __init__(self, seed: Optional[int], device: str) -> None:
        self._generator = torch.Generator(device=device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def draw(self, like: Tensor) -> Tensor:
        return torch.randint(_DROPPED + 1, like.shape, generator=self._generator, device=like.device, dtype=torch.int32)

    @property
    def state(self) -> Tensor:  # type: ignore[override]
        return self._generator.get_state()

    @state.setter
    def state(self, state: Tensor) -> None:
        self._generator.set_state(state.clone())


def to_nearest(values: Tensor) -> Tensor:
    """Returns the nearest float16 of float32 values; finite values that are too large are clipped."""
    return _clipped(values).to(torch.float16)


def rounded(values: Tensor, dtype: torch.dtype, rounding: Optional[Rounding]) -> Tensor:
    """Returns the values in `dtype`, rounded to float16 by `rounding` if given."""
    if dtype == torch.float16 and rounding is not None:
        return rounding(values)
    return values.to(dtype)


def _is_in_range(values: Tensor, limit: float) -> bool:
    """Tells whether no value is NaN or beyond the limit; False off the CPU, where a check would wait for the device."""
    if values.device.type != "cpu":
        return False
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return -limit <= low.item() and high.item() <= limit


def _clipped(values: Tensor) -> Tensor:
    """Returns the values, finite ones clipped to float16's range."""
    if _is_in_range(values, _LARGEST_THAT_ROUNDS_DOWN):
        return values
    return torch.where(torch.isinf(values), values, values.clamp(-MAX, MAX))


def widened(tensor: Tensor) -> Tensor:
    """Returns a float16 tensor as float32, any other tensor unchanged."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor

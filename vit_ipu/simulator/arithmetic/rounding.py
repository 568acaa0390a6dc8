"""Rounding to float16 as an IPU does it: to nearest, or stochastically, and to the largest finite value on overflow.

An IPU clips finite values that are too large, unless NaN on overflow is asked for (popart
removeunnecessarylossgradcastpattern.hpp:30-36, poplibs lib/popfloat/CastToHalf.cpp:97-106); infinities stay infinite.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX = 65504.0
_LARGEST_THAT_ROUNDS_DOWN = 65519.996  # below half way to what would come after MAX
_SMALLEST_NORMAL = 2.0**-14
_DROPPED = 0x1FFF  # bits of float32's mantissa that float16 has not
_FOUR_TIMES_13_BITS = np.uint64(0x1FFF1FFF1FFF1FFF)
_SCRAMBLE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


class Rounding:
    """Rounds float32 to float16; stochastic rounding draws from a generator of its own."""

    def __init__(self, *, stochastic: bool = False, seed: Optional[int] = None, device: str = "cpu") -> None:
        self.is_stochastic = stochastic
        # torch's generator may have the same seed, and rounding must not follow the data or the dropout drawn there
        scrambled = None if seed is None else (seed * _SCRAMBLE + 1) % 2**63
        self._bits: RandomBits = (_HostBits if device == "cpu" else _DeviceBits)(scrambled, device)

    def __call__(self, values: Tensor) -> Tensor:
        """The nearest float16, ties to even; or one of the two neighbours, each as often as keeps the mean."""
        if values.dtype == torch.float16:
            return values
        values = values.float()
        if not (self.is_stochastic and values.numel()):
            return to_nearest(values)
        return self._to_a_neighbour(values.contiguous()).to(torch.float16)

    def in_float32(self, values: Tensor) -> Tensor:
        """The same of contiguous float32 values, as float32."""
        if self.is_stochastic and values.numel():
            return self._to_a_neighbour(values)
        return to_nearest(values).float()

    @property
    def state(self) -> Tensor:
        """The random state, as bytes."""
        return self._bits.state

    @state.setter
    def state(self, state: Tensor) -> None:
        self._bits.state = state

    def _to_a_neighbour(self, values: Tensor) -> Tensor:
        """Float32 values on the grid of float16: towards zero, or away with the probability of the rest.

        13 random bits are added below the 10 bits of the mantissa that float16 has, and cut off. Where float16 is
        subnormal, its smallest normal is added meanwhile, so that its spacing is that of the subnormals; what then
        falls off float32 is less than 2^-13 of a spacing. Finite values beyond the largest are clipped.
        """
        near_zero = values.clamp(-1.0, 1.0)
        small = near_zero.sub_(F.hardshrink(near_zero, _SMALLEST_NORMAL)).sign_()  # the sign, or 0 above it
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
    """From numpy's SFC64, which makes four at a time and several times as fast as torch's generator."""

    def __init__(self, seed: Optional[int], device: str) -> None:
        self._generator = np.random.SFC64(seed)

    def draw(self, like: Tensor) -> Tensor:
        words = self._generator.random_raw(like.numel() // 4 + 1)
        words &= _FOUR_TIMES_13_BITS
        return torch.from_numpy(words.view(np.int16)[: like.numel()]).view(like.shape)

    @property
    def state(self) -> Tensor:  # type: ignore[override]
        words = self._generator.state["state"]["state"]
        return torch.from_numpy(words.view(np.uint8).copy())

    @state.setter
    def state(self, state: Tensor) -> None:
        whole = self._generator.state
        whole["state"]["state"] = state.cpu().numpy().copy().view(np.uint64)
        self._generator.state = whole


class _DeviceBits(RandomBits):
    """From torch's generator on the device."""

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
    """The nearest float16 of float32 values; those that are too large are clipped."""
    return _clipped(values).to(torch.float16)


def rounded(values: Tensor, dtype: torch.dtype, rounding: Optional[Rounding]) -> Tensor:
    """The values in `dtype`; to float16 by `rounding`."""
    if dtype == torch.float16 and rounding is not None:
        return rounding(values)
    return values.to(dtype)


def _is_in_range(values: Tensor, limit: float) -> bool:
    """Whether no value is beyond the limit or no number; only the CPU looks, since elsewhere one would wait."""
    if values.device.type != "cpu":
        return False
    if not values.numel():
        return True
    low, high = torch.aminmax(values)
    return -limit <= low.item() and high.item() <= limit


def _clipped(values: Tensor) -> Tensor:
    """Without finite values that float16 has not."""
    if _is_in_range(values, _LARGEST_THAT_ROUNDS_DOWN):
        return values
    return torch.where(torch.isinf(values), values, values.clamp(-MAX, MAX))


def widened(tensor: Tensor) -> Tensor:
    """Float16 as float32, anything else as it is."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor

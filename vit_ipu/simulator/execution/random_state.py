"""The seed and the states of random numbers on the simulated IPUs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic

_32_BITS = 2**32 - 1


class RandomState:
    """The random numbers of a program: its seed, the state of torch's generator, and that of stochastic rounding."""

    def __init__(self, seed: Optional[int], device: torch.device, half: Optional[HalfArithmetic]) -> None:
        """`seed`: None for another sequence at every compilation; `half`: an IPU's numerics, None for exact ones."""
        self._device, self._half = device, half
        self._seed, self._state = seed or 0, _seeded(seed, device)

    @property
    def values(self) -> List[int]:
        """The seed, the random state, and the state of stochastic rounding if rounding is stochastic."""
        states = [self._state]
        if self._half is not None and self._half.rounding.is_stochastic:
            states.append(self._half.rounding.state)
        return [self._seed, *torch.cat(states).tolist()]

    @values.setter
    def values(self, state: Sequence[int]) -> None:
        """Sets the seed and the states; a seed alone starts the sequence of that seed."""
        self._seed = int(state[0])
        own = len(self._state)
        states = torch.tensor(state[1:], dtype=torch.uint8)
        self._state = states[:own].clone() if len(states) else _seeded(self._seed, self._device)
        if self._half is not None and len(states) > own:
            self._half.rounding.state = states[own:]

    def advance(self, micro_batches: int, replicas: int) -> None:
        """Changes the seed as the micro-batches of a call do in PopART.

        Each micro-batch adds the number of replicas to the lower 32 bits, and 1 to the upper 32 bits
        (popx/op/getrandomseedx.cpp:21-39).
        """
        low, high = self._seed + micro_batches * replicas, (self._seed >> 32) + micro_batches
        self._seed = (low & _32_BITS) | (high & _32_BITS) << 32

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives torch the device's random state while the program runs, then restores the host's random state."""
        host = _rng_state(self._device)
        _set_rng_state(self._state, self._device)
        try:
            yield
        finally:
            self._state = _rng_state(self._device)
            _set_rng_state(host, self._device)


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _seeded(seed: Optional[int], device: torch.device) -> Tensor:
    """Returns a new random state, which without a seed differs at every compilation, as on an IPU."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator.get_state()

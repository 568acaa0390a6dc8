"""The seed and the states of random numbers on the simulated IPUs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import torch
from torch import Tensor

from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic
from vit_ipu.simulator.errors import error

_32_BITS = 2**32 - 1
_WORDS_OF_IPU = 1472 * 6 * 4
"""Words of an IPU's random state: four for each of the six threads of a tile."""


class RandomState:
    """The random numbers of a program: its seed, the state of torch's generator, and that of stochastic rounding.

    PopART's state has the same number of words for each IPU, and a program for another number of IPUs refuses it
    (popart/willow popx/devicex.cpp:1189-1204). Here the last value is the number of IPUs.
    """

    def __init__(
        self, seed: Optional[int], device: torch.device, half: Optional[HalfArithmetic], num_ipus: int
    ) -> None:
        """`seed`: None for another sequence at every compilation; `half`: an IPU's numerics, None for exact ones."""
        self._device, self._half, self._num_ipus = device, half, num_ipus
        self._seed, self._state = seed or 0, _seeded(seed, device)

    @property
    def values(self) -> List[int]:
        """The seed, the random state, that of stochastic rounding if it is stochastic, and the number of IPUs."""
        states = [self._state]
        if self._half is not None and self._half.rounding.is_stochastic:
            states.append(self._half.rounding.state)
        return [self._seed, *torch.cat(states).tolist(), self._num_ipus]

    @values.setter
    def values(self, state: Sequence[int]) -> None:
        """Sets the seed and the states; a seed alone starts the sequence of that seed.

        Raises Error if the states are those of another number of IPUs.
        """
        self._seed = int(state[0])
        own = len(self._state)
        states = torch.tensor(self._of_these_ipus(state[1:]), dtype=torch.uint8)
        self._state = states[:own].clone() if len(states) else _seeded(self._seed, self._device)
        if self._half is not None and len(states) > own:
            self._half.rounding.state = states[own:]

    def _of_these_ipus(self, states: Sequence[int]) -> Sequence[int]:
        """Returns the states without the number of IPUs, which states of earlier versions do not have."""
        if len(states) % 2 == 0:  # as the states of torch's generators and of rounding are
            return states
        *states, num_ipus = states
        if num_ipus != self._num_ipus:
            raise error(
                f"Devicex::setRngStateValue received rngState of size {num_ipus * _WORDS_OF_IPU}; was expecting size "
                f"{self._num_ipus * _WORDS_OF_IPU}",
                "popart_exception",
            )
        return states

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

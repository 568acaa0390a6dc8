"""Random bits for stochastic rounding, by Philox4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). The bits are a function of the seed, of the number
of the operation and of an element's place, so that a result depends neither on threads nor on blocks nor on the device.
kernels.c and cuda_kernels.py compute the same bits as this module, which is slower and needs only torch.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Union

import torch
from torch import Tensor

LANES, SLOTS = 16, 8
"""Elements with consecutive counters, and draws from the 128 bits of one counter."""
DROPPED = 0x1FFF
"""Bits of float32's mantissa that float16 lacks; a draw is a number of so many bits."""
_32_BITS = 0xFFFFFFFF
_ROUNDS = 10


class Operation(NamedTuple):
    """The key of the random bits of one operation."""

    seed: int
    """64 bits."""
    number: int
    """Number of the operation since the seed was set, or since `base`: 64 bits."""
    base: Optional[Tensor] = None
    """A number on the device to add, so that a CUDA graph that is replayed has other bits; None for 0."""


def words_of(counters: Tensor, third: Union[int, Tensor], operation: Operation) -> List[Tensor]:
    """Returns four words of 32 random bits for each counter, all int64; `third` is the third word of the counters."""
    number_low, number_high = operation.number & _32_BITS, operation.number >> 32 & _32_BITS
    key = [operation.seed & _32_BITS, (operation.seed >> 32 & _32_BITS) ^ number_high]
    zeros = torch.zeros_like(counters)
    words = [counters & _32_BITS, counters >> 32 & _32_BITS, zeros + third, zeros + number_low]
    for _ in range(_ROUNDS):
        left, right = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57  # 64 bits; the sign does not matter below
        words = [
            (right >> 32 & _32_BITS) ^ words[1] ^ key[0],
            right & _32_BITS,
            (left >> 32 & _32_BITS) ^ words[3] ^ key[1],
            left & _32_BITS,
        ]
        key = [key[0] + 0x9E3779B9 & _32_BITS, key[1] + 0xBB67AE85 & _32_BITS]
    return words


def draw_of(words: List[Tensor], slot: int) -> Tensor:
    """Returns the draw of a slot: int32 from 0 to 8191."""
    return (words[slot >> 1] >> (16 * (slot & 1)) & DROPPED).int()


def draws_of_elements(count: int, operation: Operation, device: torch.device) -> Tensor:
    """Returns a draw for each of `count` elements: the slots of LANES counters take LANES elements each."""
    blocks = -(-count // (LANES * SLOTS))
    words = words_of(torch.arange(blocks * LANES, device=device), 0, operation)
    draws = [draw_of(words, slot).view(blocks, LANES) for slot in range(SLOTS)]
    return torch.stack(draws, 1).flatten()[:count]


class DrawsOfChunks:
    """Draws for the elements of a product after each chunk: an element's counter gives those of SLOTS chunks."""

    def __init__(self, count: int, operation: Operation, device: torch.device) -> None:
        self._counters, self._operation = torch.arange(count, device=device), operation
        self._words: List[Tensor] = []

    def after(self, chunk: int) -> Tensor:
        """Returns the draws after a chunk; the chunks must be asked for in order."""
        if chunk % SLOTS == 0:
            self._words = words_of(self._counters, chunk // SLOTS, self._operation)
        return draw_of(self._words, chunk % SLOTS)

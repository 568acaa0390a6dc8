"""What changes the colours and shapes of a cropped training image: AutoAugment, RandAugment, random erasing.

All are torchvision's, which draws from torch's global generator: that is seeded from the caller's generator for the
time of a call, and then put back.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Optional

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import AutoAugment, RandAugment, RandomErasing

from vit_ipu.config import DataConfig

GREY = [128.0, 128.0, 128.0]
"""What a rotated or sheared image leaves free, as in mmclassification's and graphcore's policies."""


class Augment:
    """Pixels (S, S, 3) of uint8 to others, as the config says; the same ones, without a draw, if it says nothing."""

    def __init__(self, config: DataConfig) -> None:
        self._policy = _policy(config)
        self._erase: Optional[RandomErasing] = None
        if config.random_erasing > 0:
            # The mean's nearest byte, so that what is erased is zero after normalisation, to half a byte.
            self._erase = RandomErasing(config.random_erasing, value=[round(255 * mean) for mean in config.mean])

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self._policy is None and self._erase is None:
            return pixels
        with torchs_generator_from(rng):
            if self._policy is not None:
                pixels = np.array(self._policy(Image.fromarray(pixels)))
            if self._erase is not None:
                pixels = self._erase(torch.tensor(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return pixels


def _policy(config: DataConfig) -> Any:
    if config.auto_augment is not None:
        return AutoAugment(fill=GREY)
    if config.rand_augment is not None:
        num_ops, magnitude = config.rand_augment
        return RandAugment(num_ops, magnitude, fill=GREY)
    return None


@contextmanager
def torchs_generator_from(rng: np.random.Generator) -> Iterator[None]:
    """Within, torch's global CPU generator is seeded by a draw of `rng`; afterwards it is as it was before."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(rng.integers(1 << 63)))  # not torch.manual_seed, which seeds GPUs too
    try:
        yield
    finally:
        torch.set_rng_state(before)

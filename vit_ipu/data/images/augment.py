"""Augmentation of a cropped training image: AutoAugment, RandAugment, random erasing.

All are torchvision's transforms, which draw from torch's global generator. Each call seeds that generator from the
caller's generator, and restores the global generator's state at the end.
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
"""Colour of the area that a rotated or sheared image leaves free, as in mmclassification's and graphcore's policies."""


class Augment:
    """Augments pixels (S, S, 3) of uint8; returns them unchanged, without a random draw, if the config has none."""

    def __init__(self, config: DataConfig) -> None:
        self._policy = _policy(config)
        self._erase: Optional[RandomErasing] = None
        if config.random_erasing > 0:
            # The byte nearest to the mean, so that erased pixels are zero after normalisation, to half a byte.
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
    """Seeds torch's global CPU generator by a draw of `rng`, and restores the generator's state at the end."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(rng.integers(1 << 63)))  # not torch.manual_seed, which seeds GPUs too
    try:
        yield
    finally:
        torch.set_rng_state(before)

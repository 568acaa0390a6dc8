"""From an image of any size to the square uint8 pixels that travel to the device, and their normalisation there.

Pixels are arrays (3, S, S) of uint8. Random choices come from a generator that the caller seeds.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from vit_ipu.config import DataConfig
from vit_ipu.data.augment import Augment

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Box = Tuple[int, int, int, int]


class TrainTransform:
    """A random crop and flip, then the config's augmentation."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self._config, self._size = config, image_size
        self._augment = Augment(config)

    def __call__(self, image: Image.Image, rng: "np.random.Generator") -> "np.ndarray":
        cropped = self._crop(image, rng)
        if rng.random() < self._config.horizontal_flip:
            cropped = ImageOps.mirror(cropped)
        return channels_first(self._augment(np.asarray(cropped), rng))

    def _crop(self, image: Image.Image, rng: "np.random.Generator") -> Image.Image:
        config, size = self._config, self._size
        if config.crop == "random_resized":
            box = random_resized_box(image.size, config.crop_scale, config.crop_ratio, rng)
            return image.resize((size, size), _FILTERS[config.interpolation], box=box)
        fitted = resize_and_center(image, size, size, config.interpolation)
        if config.crop == "center":
            return fitted
        padding = config.crop_padding
        left, top = rng.integers(2 * padding + 1, size=2).tolist()
        return ImageOps.expand(fitted, padding).crop((left, top, left + size, top + size))


class EvalTransform:
    """A resize of the short side and the middle of the image."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self._config, self._size = config, image_size

    def __call__(self, image: Image.Image) -> "np.ndarray":
        short_side = self._config.eval_resize or self._size
        return to_pixels(resize_and_center(image, short_side, self._size, self._config.interpolation))


class Normalize(nn.Module):
    """Images (B, 3, S, S) on the device: bytes to (pixel / 255 - mean) / std in the buffers' dtype.

    Images that travel as floats were normalised on the host, and only change their dtype.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.from_bytes = config.transfer == "uint8"
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (config.mean, config.std))
        # One multiply and one add, with factors that are exact in float64 before they are rounded once.
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.scale.dtype)
        return images * self.scale + self.shift if self.from_bytes else images


def normalize_on_host(pixels: "np.ndarray", config: DataConfig) -> "np.ndarray":
    """Bytes (..., 3, S, S) as float32, normalised."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    return (pixels.astype(np.float32) / 255 - mean) / std


def random_resized_box(
    size: Tuple[int, int], scale: Tuple[float, float], ratio: Tuple[float, float], rng: "np.random.Generator"
) -> Box:
    """A box (left, top, right, bottom) of random area and log-uniform aspect, as in arXiv:1409.4842.

    The distribution is that of torchvision's RandomResizedCrop: ten tries, then the largest middle crop.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resize_and_center(image: Image.Image, short_side: int, size: int, interpolation: str) -> Image.Image:
    """The middle (size, size) of the image after its short side was made `short_side`."""
    width, height = image.size
    factor = short_side / min(width, height)
    side = size / factor  # of the crop, in pixels of the original
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    if box == (0, 0, size, size) and image.size == (size, size):
        return image
    return image.resize((size, size), _FILTERS[interpolation], box=box)


def to_pixels(image: Image.Image) -> "np.ndarray":
    """An RGB image as (3, H, W) uint8."""
    return channels_first(np.asarray(image))


def channels_first(pixels: "np.ndarray") -> "np.ndarray":
    """(H, W, 3) as (3, H, W)."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))

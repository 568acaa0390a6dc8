"""Transforms of a picture of any size to the square uint8 pixels that are sent to the device, and their normalisation.

Pixels are arrays (3, S, S) of uint8, written to `out` if given. Random choices come from a generator that the caller
seeds.
"""

from __future__ import annotations

import math
from typing import Optional, Tuple

import cv2
import numpy as np

from vit_ipu.config import DataConfig
from vit_ipu.data.images.augment import Augment
from vit_ipu.data.images.decode import Picture
from vit_ipu.data.images.resize import squashed_box


class TrainTransform:
    """A random crop and flip, then the config's augmentation."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self._config, self._size = config, image_size
        self._augment = Augment(config)

    def __call__(self, picture: Picture, rng: np.random.Generator, out: Optional[np.ndarray] = None) -> np.ndarray:
        image = self._crop(picture, rng)
        if rng.random() < self._config.horizontal_flip:
            image = cv2.flip(image, 1)
        return to_pixels(self._augment(image, rng), out)

    def _crop(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
        config, size = self._config, self._size
        if config.crop == "random_resized":
            box = random_resized_box(picture.size, config.crop_scale, config.crop_ratio, rng)
            return picture.crop(box, size, config.interpolation)
        fitted = picture.middle(size, size, config.interpolation)
        return fitted if config.crop == "center" else _shift(fitted, config.crop_padding, rng)


class EvalTransform:
    """A resize of the short side, or of both sides to the same length, then a center crop."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self._config, self._size = config, image_size

    def __call__(self, picture: Picture, out: Optional[np.ndarray] = None) -> np.ndarray:
        side, interpolation = self._config.eval_resize or self._size, self._config.interpolation
        if self._config.eval_crop == "squash":
            box = squashed_box(picture.size, side, self._size)
            return to_pixels(picture.crop(box, self._size, interpolation), out)
        return to_pixels(picture.middle(side, self._size, interpolation), out)


def normalize_on_host(pixels: np.ndarray, config: DataConfig) -> np.ndarray:
    """Returns uint8 pixels (..., 3, S, S) as float32, normalised."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (config.mean, config.std))
    return (pixels.astype(np.float32) / 255 - mean) / std


def random_resized_box(
    size: Tuple[int, int], scale: Tuple[float, float], ratio: Tuple[float, float], rng: np.random.Generator
) -> Tuple[int, int, int, int]:
    """Returns a box (left, top, right, bottom) of random area and log-uniform aspect, as in arXiv:1409.4842.

    The distribution is that of torchvision's RandomResizedCrop: ten tries, then the largest center crop.
    """
    width, height = size
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        draws = rng.random(4).tolist()  # a single call, which costs as much as hundreds of draws
        area = width * height * (scale[0] + (scale[1] - scale[0]) * draws[0])
        aspect = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * draws[1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * draws[2]), int((height - h + 1) * draws[3])
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def to_pixels(image: np.ndarray, out: Optional[np.ndarray] = None) -> np.ndarray:
    """Returns an image (H, W, 3) as (3, H, W). Raises ValueError if a dtype is not uint8 or `out` has another shape."""
    if out is None:
        out = np.empty((3, *image.shape[:2]), np.uint8)
    is_bytes = image.dtype == np.uint8 and out.dtype == np.uint8
    if not is_bytes or out.shape != (3, *image.shape[:2]):  # OpenCV would silently write elsewhere
        raise ValueError(f"cannot write pixels {image.shape} {image.dtype} into {out.shape} {out.dtype}")
    cv2.split(image, list(out))  # a fifth of the time of numpy's strided copy
    return out


def _shift(image: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Shifts the image (S, S, 3) at random by up to `padding` pixels over black."""
    size = len(image)
    left, top = rng.integers(2 * padding + 1, size=2).tolist()
    padded = np.zeros((size + 2 * padding, size + 2 * padding, 3), np.uint8)
    padded[padding : padding + size, padding : padding + size] = image
    return padded[top : top + size, left : left + size]

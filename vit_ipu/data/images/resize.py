"""Boxes in images, and resizing of boxes, always antialiased.

benchmarks/jpeg_decoders.py has the measurements by which the libraries were chosen. Pixels are arrays (H, W, 3) of
uint8.
"""

from __future__ import annotations

import math
from typing import Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Box = Tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
Size = Tuple[int, int]
"""Width and height."""

# After a fork, OpenCV would wait forever for the parent's thread pool; and crops are small.
cv2.setNumThreads(0)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resized(pixels: np.ndarray, box: Box, size: Size, interpolation: str) -> np.ndarray:
    """Resizes the box of `pixels` (H, W, 3), whose edges may lie within pixels, to `size`, with antialiasing."""
    left, top = math.floor(box[0]), math.floor(box[1])
    pixels = pixels[top : math.ceil(box[3]), left : math.ceil(box[2])]
    height, width = pixels.shape[:2]
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    if inner == (0, 0, *size):
        return pixels
    if inner == (0, 0, width, height):
        if interpolation == "bilinear" and width <= size[0] and height <= size[1]:  # nothing to antialias
            return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        if interpolation in QUICK_IN_TORCH:
            return _resize_by_torch(pixels, size, interpolation)
    return np.array(resized_by_pillow(Image.fromarray(np.ascontiguousarray(pixels)), inner, size, interpolation))


def _resize_by_torch(pixels: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    four = torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA))  # torch is quicker with four bytes a pixel
    images = four.unsqueeze(0).permute(0, 3, 1, 2)  # (1, 4, H, W) in memory format channels_last
    images = F.interpolate(images, size[::-1], mode=interpolation, antialias=True)
    return cv2.cvtColor(images.permute(0, 2, 3, 1)[0].numpy(), cv2.COLOR_RGBA2RGB)


def _quick_in_torch() -> Tuple[str, ...]:
    """Returns the filters that torch computes on bytes with vector instructions; Pillow is faster for other filters."""
    if not hasattr(torch.backends, "cpu"):  # torch 2.0
        return ("bilinear",)
    return ("bilinear", "bicubic") if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else ()


QUICK_IN_TORCH = _quick_in_torch()
"""Filters with which torch resizes a complete image in a fifth of Pillow's time; Pillow always resizes a box with edges
within pixels."""


def resized_by_pillow(image: Image.Image, box: Box, size: Size, interpolation: str) -> Image.Image:
    """Resizes the box of an image of any mode, and keeps the mode."""
    return image.resize(size, _FILTERS[interpolation], box=box)


# ----------------------------------------------------------- the middle, as torchvision's Resize and CenterCrop


def resized_size(size: Size, short_side: int) -> Size:
    """Returns the size after the short side becomes `short_side`; the long side is rounded down."""
    return size[0] * short_side // min(size), size[1] * short_side // min(size)


def center_offset(size: Size, crop_side: int) -> Tuple[int, int]:
    """Returns left and top of the center crop (crop_side, crop_side)."""
    return round((size[0] - crop_side) / 2), round((size[1] - crop_side) / 2)


def center_box(size: Size, short_side: int, crop_side: int) -> Box:
    """Returns the box that becomes the center crop (crop_side, crop_side) when the short side becomes `short_side`.

    The box lies on the grid of the resized image: its edges are within pixels, and its sides differ if the long side
    was rounded.
    """
    whole = resized_size(size, short_side)
    offset = center_offset(whole, crop_side)
    (left, right), (top, bottom) = (
        (start * side / among, min((start + crop_side) * side / among, side))
        for start, side, among in zip(offset, size, whole)
    )
    return left, top, right, bottom


def squashed_box(size: Size, side: int, crop_side: int) -> Box:
    """Returns the box that becomes the center crop (crop_side, crop_side) when both sides become `side`."""
    starts = center_offset((side, side), crop_side)
    left, top = (start * length / side for start, length in zip(starts, size))
    right, bottom = ((start + crop_side) * length / side for start, length in zip(starts, size))
    return left, top, right, bottom

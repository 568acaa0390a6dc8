"""Base classes of image sources: labels, and a picture at each index."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from vit_ipu.data.images.decode import DecodedImage, EncodedImage, Picture
from vit_ipu.errors import DataError
from vit_ipu.text import and_more

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train",), "eval": ("val", "validation", "test")}


class Source:
    """Images with labels, which many processes read by index in any order.

    Order and augmentation depend on (seed, epoch, index) alone, so the image at an index must never change.
    """

    def __init__(self, classes: Sequence[str], labels: np.ndarray) -> None:
        self.classes = tuple(classes)
        """The name of each label."""
        self.labels = labels
        """Labels (n,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Returns the RGB image at `index`, of any size, upright."""
        raise NotImplementedError

    def picture(self, index: int) -> Picture:
        """Returns the image at `index` as a picture, which may not be decoded yet."""
        return DecodedImage(self.image(index))


class EncodedSource(Source):
    """Images stored as the bytes of image files."""

    def picture(self, index: int) -> EncodedImage:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        return self.picture(index).rgb()


def split_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split below `root`. Raises DataError if there is none."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    expected = " or ".join(SPLIT_FOLDERS[split])
    raise DataError(f"no folder {expected} in {root}")


def has_split(root: Path, split: str) -> bool:
    """Tells whether `root` has a folder of a split: an evaluation alone needs no training images."""
    return any((root / name).is_dir() for name in SPLIT_FOLDERS[split])


def require_same_classes(trained: Sequence[str], held_out: Sequence[str], where: Path) -> None:
    """Raises DataError unless the held-out images in `where` have the classes of the training images, in order."""
    if list(trained) != list(held_out):
        differing = sorted(set(trained) ^ set(held_out)) or ["their order"]
        raise DataError(
            f"{where} and its train folder have different classes: {differing[0]}{and_more(len(differing) - 1)}"
        )

"""What a source of images is: labels, and a picture at every index."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from vit_ipu.data.images.decode import DataError, DecodedImage, EncodedImage, Picture, one_line, unreadable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train",), "eval": ("val", "validation", "test")}


class Source:
    """Images with labels, by index: any order, from many processes.

    Order and augmentation depend on (seed, epoch, index) alone, so what a source gives at an index never changes.
    """

    def __init__(self, classes: Sequence[str], labels: np.ndarray) -> None:
        self.classes = tuple(classes)
        """The name of each label."""
        self.labels = labels
        """(n,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The RGB image at `index`, of any size, upright."""
        raise NotImplementedError

    def picture(self, index: int) -> Picture:
        """The same, which need not be decoded yet."""
        return DecodedImage(self.image(index))


class EncodedSource(Source):
    """Images that are kept as the bytes of image files."""

    def picture(self, index: int) -> EncodedImage:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        return self.picture(index).rgb()


def open_picture(path: str) -> EncodedImage:
    """The image file at `path`. Raises DataError if it cannot be read."""
    return EncodedImage(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The image file at `path` as it is. Raises DataError if it cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise unreadable(path, "it is no regular file")
            return file.read()
    except FileNotFoundError:
        raise DataError(f"no image at {one_line(path)}") from None
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    """Of a pipe, open would wait for somebody who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def expanded(path: str) -> Path:
    """The path with ~ as the home folder. Raises DataError if nobody knows that."""
    found = os.path.expanduser(path)
    if found.startswith("~"):  # pathlib raises one or the other kind, by Python's version
        raise DataError(f"{path}: nobody knows this home folder: give the whole path")
    return Path(found)


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split below `root`. Raises DataError if there is none."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise DataError("no folder {} in {}".format(" or ".join(SPLIT_FOLDERS[split]), root))


def has_split(root: Path, split: str) -> bool:
    """Whether there is a folder of a split below `root`: an evaluation alone needs no training images."""
    return any((root / name).is_dir() for name in SPLIT_FOLDERS[split])


def require_same_classes(trained: Sequence[str], held_out: Sequence[str], where: Path) -> None:
    """Raises DataError unless the held-out images in `where` have the classes of the training images, in order."""
    if list(trained) != list(held_out):
        differing = sorted(set(trained) ^ set(held_out)) or ["their order"]
        raise DataError(
            f"{where} and its train folder have different classes: {differing[0]} and {len(differing) - 1} more"
        )

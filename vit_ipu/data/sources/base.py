"""Base classes of image sources: labels, and a picture at each index."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np
from PIL import Image

from vit_ipu.config_sections.colors import Rgb
from vit_ipu.data.images.decode import DecodedImage, EncodedImage, Picture
from vit_ipu.errors import DataError
from vit_ipu.text import and_more, escaped, listed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train",), "eval": ("val", "valid", "validation", "test")}
SYSTEM_NAMES = frozenset(
    ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
)
"""Files and folders, in lower case, that Windows, macOS, network storage and file systems put among the images."""


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

    def name(self, index: int) -> str:
        """Returns a name by which a person finds the image at `index`: its path, if it has one."""
        return f"image {index}"

    def picture(self, index: int) -> Picture:
        """Returns the image at `index` as a picture, which may not be decoded yet."""
        return DecodedImage(self.image(index))


class EncodedSource(Source):
    """Images stored as the bytes of image files."""

    background: Optional[Rgb] = None
    """Colour on which transparent images are laid; None: transparency is dropped."""

    def picture(self, index: int) -> EncodedImage:
        return self.encoded(index).on(self.background)

    def encoded(self, index: int) -> EncodedImage:
        """Returns the image file at `index`. Raises DataError if the file cannot be read."""
        raise NotImplementedError

    def close_files(self) -> None:
        """Closes the files that reading opened; they are opened again when they are read."""

    def image(self, index: int) -> Image.Image:
        return self.picture(index).rgb()


def is_of_system(name: str) -> bool:
    """Tells whether a file or folder is hidden or was made by an operating system, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def parse_label(text: str) -> Optional[int]:
    """Returns the label in a text, or None unless the text is a number of ASCII digits that 31 bits can hold.

    Python's int() accepts more, which is a slip rather than a label: 1_0, +3, and the digits of other scripts.
    """
    found = re.fullmatch(r"\s*0*([0-9]{1,10})\s*", text, re.ASCII)
    label = -1 if found is None else int(found.group(1))
    return label if 0 <= label < 1 << 31 else None


def split_folder(root: Path, split: str) -> Path:
    """Returns the folder of a split below `root`. Raises DataError if there is none."""
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    expected = " or ".join(SPLIT_FOLDERS[split])
    raise DataError(f"no folder {expected} in {root}, which has {listed(_folders_in(root)) or 'no folders'}")


def _folders_in(root: Path) -> List[str]:
    try:
        with os.scandir(str(root)) as entries:
            return sorted(entry.name for entry in entries if not is_of_system(entry.name) and entry.is_dir())
    except OSError:  # the caller reports the missing folder in any case
        return []


def has_split(root: Path, split: str) -> bool:
    """Tells whether `root` has a folder of a split: an evaluation alone needs no training images."""
    return any((root / name).is_dir() for name in SPLIT_FOLDERS[split])


def require_same_classes(trained: Sequence[str], held_out: Sequence[str], where: Path) -> None:
    """Raises DataError unless the held-out images in `where` have the classes of the training images, in order."""
    if list(trained) != list(held_out):
        differing = sorted(set(trained) ^ set(held_out))
        if not differing:
            raise DataError(
                f"{where} and its train folder have their classes in different orders: list both in one order"
            )
        example, place = escaped(differing[0]), "train" if differing[0] in trained else where.name
        raise DataError(
            f"{where} and its train folder have different classes: {example}{and_more(len(differing) - 1)}; {example} "
            f"is only in {place}: give both the same classes"
        )

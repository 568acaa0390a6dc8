"""Image files below one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.sources.base import EncodedSource, has_split, require_same_classes, split_folder
from vit_ipu.data.sources.holdout import held_out
from vit_ipu.data.sources.listing import ImagePaths, ListingCache, class_folders, images_beside_classes, list_images
from vit_ipu.errors import DataError
from vit_ipu.text import counted, escaped, listed

_NUM_LOOKED_AT = 4
"""Number of folders that are searched for images, to tell whether they may be classes."""


class FolderSource(EncodedSource):
    """Image files with labels."""

    def __init__(
        self, paths: ImagePaths, labels: np.ndarray, classes: Sequence[str], kept: Optional[np.ndarray] = None
    ) -> None:
        """`labels` are those of all `paths`; `kept` are the indices of the images of this source; None: all images."""
        super().__init__(classes, labels if kept is None else labels[kept])
        self.paths, self._kept = paths, kept

    def name(self, index: int) -> str:
        return self.paths[index if self._kept is None else int(self._kept[index])]

    def encoded(self, index: int) -> EncodedImage:
        return open_picture(self.name(index))


def open_folders(root: Path, split: str, cache: ListingCache, holdout: Optional[float] = None) -> FolderSource:
    """Opens the images in root/train/CLASS or root/val/CLASS; classes and files are in alphabetical order.

    With `holdout`, the images are in root/CLASS, and this share of each class is held out for evaluation.
    """
    if holdout is not None:
        return _open_one_folder(root, split, cache, holdout)
    try:
        folder = split_folder(root, split)
    except DataError as error:
        raise DataError(f"{error}{_holdout_hint(root)}") from None
    classes = class_folders(folder)
    if not classes:
        raise DataError(f"no class folders in {folder}: expected {folder}/CLASS/*.jpg")
    if split == "eval" and has_split(root, "train"):
        require_same_classes(class_folders(split_folder(root, "train")), classes, folder)
    return open_class_folders(folder, classes, classes, split, cache)


def _holdout_hint(root: Path) -> str:
    """Returns the remedy if the folder seems to have class folders directly in it; nothing otherwise."""
    if has_split(root, "train") or has_split(root, "eval"):
        return ""
    if not has_class_folders(root):
        return ""
    return "; if these are the classes, set data.holdout: 0.1, which holds out a tenth of each for evaluation"


def has_class_folders(root: Path) -> bool:
    """Tells whether a folder seems to have class folders directly in it: one of the first folders has images."""
    return any(images_beside_classes(root / name) for name in class_folders(root)[:_NUM_LOOKED_AT])


def open_undivided(root: Path, cache: ListingCache) -> FolderSource:
    """Opens all images in root/CLASS. Raises DataError if there are none, or none in one of the class folders."""
    classes = class_folders(root)
    if not classes:
        raise DataError(f"no class folders in {root}: expected {root}/CLASS/*.jpg")
    return open_class_folders(root, classes, classes, "train", cache)


def _open_one_folder(root: Path, split: str, cache: ListingCache, holdout: float) -> FolderSource:
    """Opens the training images or the held-out images of the class folders in `root`."""
    for part in ("train", "eval"):
        if has_split(root, part):
            folder = split_folder(root, part)
            raise DataError(
                f"data.holdout {holdout}: {root} has the folder {folder.name}, so its images are divided already: "
                f"remove data.holdout, or give data.path: {folder} to divide only that folder"
            )
    everything = open_undivided(root, cache)
    chosen = held_out(everything.paths, holdout)
    if not chosen.any():
        raise DataError(
            f"data.holdout {holdout}: every class in {root} has one image, so none can be held out: add images"
        )
    kept = np.flatnonzero(chosen if split == "eval" else ~chosen)
    return FolderSource(everything.paths, everything.labels, everything.classes, kept)


def _text_of_empty(folder: Path, names: Sequence[str]) -> str:
    """Returns what is wrong with class folders without images."""
    if len(names) == 1:
        return f"no images in the class folder {folder / names[0]}: add images, or remove the folder"
    return f"no images in {len(names):,} class folders of {folder}: {listed(names)}; add images, or remove the folders"


def open_class_folders(
    folder: Path, class_names: Sequence[str], names: Sequence[str], split: str, cache: ListingCache
) -> FolderSource:
    """Opens the images in the folders `class_names` below `folder`; `names` are the class names of the labels.

    Raises DataError if there are no images, or if a class of the training images has none.
    """
    paths = list_images(folder, class_names, cache)
    if not len(paths):
        raise DataError(f"no images below {folder}: expected {folder}/CLASS/*.jpg")
    empty = np.flatnonzero(np.bincount(paths.folder, minlength=len(class_names)) == 0)
    if len(empty) and split == "train":
        raise DataError(_text_of_empty(folder, [class_names[int(number)] for number in empty]))
    strays = images_beside_classes(folder)
    if strays:
        cache.notify(
            f"note: left out {counted(len(strays), 'image')} directly in {folder}, such as {escaped(strays[0])}: each "
            "image belongs into the folder of its class"
        )
    return FolderSource(paths, paths.folder.astype(np.int64), names)

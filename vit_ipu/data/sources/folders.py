"""Image files below one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.sources.base import EncodedSource, has_split, require_same_classes, split_folder
from vit_ipu.data.sources.listing import ImagePaths, ListingCache, class_folders, images_beside_classes, list_images
from vit_ipu.errors import DataError
from vit_ipu.text import and_more, counted, escaped


class FolderSource(EncodedSource):
    """Image files with labels."""

    def __init__(self, paths: ImagePaths, labels: np.ndarray, classes: Sequence[str]) -> None:
        super().__init__(classes, labels)
        self.paths = paths

    def name(self, index: int) -> str:
        return self.paths[index]

    def picture(self, index: int) -> EncodedImage:
        return open_picture(self.paths[index])


def open_folders(root: Path, split: str, cache: ListingCache) -> FolderSource:
    """Opens the images in root/train/CLASS or root/val/CLASS; classes and files are in alphabetical order."""
    folder = split_folder(root, split)
    classes = class_folders(folder)
    if not classes:
        raise DataError(f"no class folders in {folder}: expected {folder}/CLASS/*.jpg")
    if split == "eval" and has_split(root, "train"):
        require_same_classes(class_folders(split_folder(root, "train")), classes, folder)
    return open_class_folders(folder, classes, classes, split, cache)


def open_class_folders(
    folder: Path, class_names: Sequence[str], names: Sequence[str], split: str, cache: ListingCache
) -> FolderSource:
    """Opens the images in the folders `class_names` below `folder`; `names` are the class names of the labels."""
    paths = list_images(folder, class_names, cache)
    if not len(paths):
        raise DataError(f"no images below {folder}: expected {folder}/CLASS/*.jpg")
    empty = np.flatnonzero(np.bincount(paths.folder, minlength=len(class_names)) == 0)
    if len(empty) and split == "train":
        raise DataError(
            f"no images in the class folder {folder / class_names[int(empty[0])]}{and_more(len(empty) - 1)}: add "
            "images, or remove empty class folders"
        )
    if len(empty):
        cache.notify(
            f"note: no images in {len(empty)} of {len(class_names)} class folders of {folder}, such as "
            f"{class_names[int(empty[0])]}"
        )
    strays = images_beside_classes(folder)
    if strays:
        cache.notify(
            f"note: left out {counted(len(strays), 'image')} directly in {folder}, such as {escaped(strays[0])}: each "
            "image belongs into the folder of its class"
        )
    return FolderSource(paths, paths.folder.astype(np.int64), names)

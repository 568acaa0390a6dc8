"""Splits of a folder of images to pack: train and val, or train alone if the folder has its class folders directly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterable, List

from vit_ipu.data.sources.base import has_split, split_folder
from vit_ipu.data.sources.folders import FolderSource, has_class_folders, open_folders, open_undivided
from vit_ipu.data.sources.held_out_classes import note_classes_without_images
from vit_ipu.data.sources.imagenet import imagenet_root, is_imagenet, open_imagenet
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shard_index import JOURNAL, read_index
from vit_ipu.errors import UserError
from vit_ipu.text import Notify, escaped

SPLITS = {"train": "train", "eval": "val"}
"""The folder name of each split."""
TRAIN = SPLITS["train"]


def open_images(source: Path, cache: ListingCache) -> Dict[str, FolderSource]:
    """Returns the images of each split by the split's folder name.

    Those of a folder with class folders directly in it are training images. Raises DataError if images are missing.
    """
    if _is_undivided(source):
        return {TRAIN: open_undivided(source, cache)}
    opener = open_imagenet if is_imagenet(source) else open_folders
    images = {name: opener(source, split, cache) for split, name in SPLITS.items()}
    note_classes_without_images(images[SPLITS["eval"]], cache.notify)
    return images


def _is_undivided(source: Path) -> bool:
    """Tells whether a folder has class folders directly in it, rather than in folders of splits."""
    root = imagenet_root(source)
    return not any(has_split(root, split) for split in SPLITS) and has_class_folders(root)


def note_undivided(source: Path, images: Dict[str, FolderSource], notify: Notify) -> None:
    """Notifies that no images are packed as held-out ones, if this is so."""
    if list(images) == [TRAIN]:
        notify(
            f"note: {escaped(str(source))} has no folders train and val, so all of its images are packed as training "
            "images: train from them with data.holdout, such as 0.1, which holds out a tenth of each class"
        )


def refuse_unusable_target(target: Path, source: Path, images: Dict[str, FolderSource]) -> None:
    """Raises UserError if the target is among the images, or has files that this pack did not write."""
    around = [str(path) for path in (target.resolve(), *target.resolve().parents)]
    for folder in (*_folders_of_images(source, images), *_class_folders_of(images.values())):
        if os.path.realpath(folder) in around:
            raise UserError(f"{target} is in {folder}, among the images: give another TARGET")
    for name in SPLITS.values():
        place = target / name
        is_ours = (place / JOURNAL).is_file() or read_index(place) is not None
        if place.is_dir() and any(place.iterdir()) and not (is_ours and name in images):
            other = (
                "images that were packed from another folder" if is_ours else "files that vit-ipu pack did not write"
            )
            raise UserError(f"{place} has {other}: give another TARGET")


def _folders_of_images(source: Path, images: Dict[str, FolderSource]) -> List[str]:
    """Returns the folder of each split, or the complete folder if it is not divided."""
    if list(images) == [TRAIN]:
        return [str(source)]
    return [str(split_folder(imagenet_root(source), split)) for split in SPLITS]


def _class_folders_of(images: Iterable[FolderSource]) -> List[str]:
    return [folder for found in images for folder in found.paths.folders]

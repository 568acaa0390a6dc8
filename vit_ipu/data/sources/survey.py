"""Survey of a folder of images before the first run: its classes, the images of each, their sizes, and odd files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.sources.base import has_split, is_of_system
from vit_ipu.data.sources.folders import FolderSource, open_folders
from vit_ipu.data.sources.held_out_classes import classes_without_images
from vit_ipu.data.sources.listing import ListingCache, class_folders, images_beside_classes
from vit_ipu.data.sources.transparent_images import LARGE, has_transparency
from vit_ipu.errors import DataError
from vit_ipu.files import expand_home
from vit_ipu.text import Notify, counted, escaped, reason_of

_NUM_PROBED = 2000
"""Images whose headers are read, spread over the folder."""
_NUM_DECODED = 64
"""Images that are decoded completely."""
_SMALL_CLASS = 50
"""Images of a class below which a fifth of each class is held out instead of a tenth."""


@dataclass(frozen=True)
class FolderSurvey:
    """Contents of a folder of images."""

    path: str
    """Folder to train on (`data.path`): the folder that was given, or its train folder if it has nothing held out."""
    holdout: Optional[float]
    """Share of each class to hold out (`data.holdout`); None if the folder is divided into train and val."""
    classes: Tuple[str, ...]
    num_train: int
    num_eval: int
    not_held_out: Tuple[str, ...]
    """Names of the classes of which no image is held out."""
    fewest: int
    """Training images of the smallest class."""
    most: int
    """Training images of the largest class."""
    width: int
    """Median width in pixels of the images that were looked at."""
    height: int
    """Median height in pixels of these images."""
    num_probed: int
    """Number of images that were looked at."""
    unreadable: Tuple[str, ...]
    """The reason for each image that cannot be read, of those that were looked at."""
    num_transparent: int
    """Number of images with transparency, of those that were looked at."""
    num_large: int
    """Number of images of more than 20 megapixels, of those that were looked at."""
    largest: str
    """Path of the largest image that was looked at."""
    largest_size: Tuple[int, int]
    """Width and height in pixels of the largest image."""

    @property
    def images_a_class(self) -> str:
        """The number of training images of a class, or the smallest and the largest one, as text."""
        return f"{self.fewest:,}" if self.fewest == self.most else f"{self.fewest:,} to {self.most:,}"


def survey_folder(folder: str, *, notify: Notify) -> FolderSurvey:
    """Looks at a folder with class folders, either directly in it or in its folders train and val.

    `notify` receives a note on entries that are left out. Raises DataError if the folder cannot be trained on.
    """
    root = require_folder_of_images(folder)
    path, holdout = root, None
    if not has_split(root, "eval"):
        path = root / "train" if has_split(root, "train") else root
        holdout = _share(path)
    cache = ListingCache(notify=notify)
    train = open_folders(path, "train", cache, holdout)
    held_out = open_folders(path, "eval", ListingCache(), holdout)
    counts = np.bincount(train.labels, minlength=len(train.classes))
    found, unreadable = _probe(train)
    if not found:
        raise DataError(
            f"{escaped(str(root))}: none of {counted(len(unreadable), 'image')} can be read: {unreadable[0]}"
        )
    width, height = (int(np.median([image.size[axis] for image in found])) for axis in (0, 1))
    largest = max(found, key=lambda image: image.pixels)
    shown = folder if path == root else str(Path(folder) / "train")
    return FolderSurvey(
        shown,
        holdout,
        train.classes,
        len(train),
        len(held_out),
        tuple(classes_without_images(held_out)),
        fewest=int(counts.min()),
        most=int(counts.max()),
        width=width,
        height=height,
        num_probed=len(found) + len(unreadable),
        unreadable=tuple(unreadable),
        num_transparent=sum(image.is_transparent for image in found),
        num_large=sum(image.pixels > LARGE for image in found),
        largest=largest.path,
        largest_size=largest.size,
    )


def require_folder_of_images(folder: str) -> Path:
    """Returns the path of a folder that has class folders, directly or in a folder train.

    Raises DataError, with the remedy, for another folder, and for one that cannot be meant, such as /.
    """
    root = expand_home(folder)
    name = escaped(str(root)) if folder else "FOLDER ''"
    problem = _problem_with(folder, root)
    if problem is not None:
        raise DataError(f"{name} {problem}: give the folder that has one folder of images for each class")
    _refuse_other_sources(root, name)
    if has_split(root, "eval") and not has_split(root, "train"):
        raise DataError(f"{name} has held-out images but no folder train: put the images to train on into {name}/train")
    folders = [root / part for part in class_folders(root)]
    if not folders:
        beside = images_beside_classes(root)
        found = f"{counted(len(beside), 'image')} but no folders" if beside else "neither images nor folders"
        raise DataError(f"{name} has {found}: put the images of each class into a folder of their own")
    classes = folders if not has_split(root, "train") else [root / "train" / n for n in class_folders(root / "train")]
    if len(classes) == 1:
        inner = _folders_in(classes[0])
        remedy = f"give {classes[0]}" if inner else "add the folder of a second class"
        raise DataError(f"{name} has only one class folder, {escaped(classes[0].name)}: {remedy}")
    _require_images(root, name, classes)
    return root


def _problem_with(folder: str, root: Path) -> Optional[str]:
    """Returns why a path cannot be meant as a folder of images; None if it can."""
    if not folder:
        return "is empty"
    if not root.is_dir():
        return "is a file" if root.exists() else "does not exist"
    return "is the root of the file system" if root.resolve() == root.resolve().parent else None


def _require_images(root: Path, name: str, classes: List[Path]) -> None:
    """Raises DataError if no class folder has images, but all have folders, such as Train and Test."""
    if all(not images_beside_classes(path) and _folders_in(path) for path in classes):
        raise DataError(
            f"the folders of {name} ({escaped(classes[0].name)}, ...) have folders instead of images: call them train "
            f"and val if they divide the images, or give one of them, such as {escaped(str(classes[0]))}"
        )


def _folders_in(path: Path) -> List[str]:
    try:
        return class_folders(path)
    except DataError:  # a folder that cannot be listed is reported when its images are listed
        return []


def _refuse_other_sources(root: Path, name: str) -> None:
    """Raises DataError for a folder that another `data.source` reads."""
    try:
        entries = sorted(entry.name for entry in root.iterdir() if not is_of_system(entry.name))
    except OSError as error:
        raise DataError(f"cannot list {name}: {reason_of(error)}") from None
    marks: Dict[str, bool] = {
        "huggingface": "dataset_dict.json" in entries,
        "imagenet": "ILSVRC" in entries or (root / "meta" / "train.txt").is_file(),
        "shards": any(entry.endswith(".tar") for entry in entries) or any((root / "train").glob("*.tar")),
    }
    for source, found in marks.items():
        if found:
            raise DataError(
                f"{name} is not a folder of class folders, but of data.source {source}: start from a config in "
                f"pipeline_configs/ with data.source: {source} and data.path: {name}"
            )


def _share(path: Path) -> float:
    """Returns the share to hold out: a tenth of each class, or a fifth if a class is small."""
    counts = [len(images_beside_classes(path / name)) for name in class_folders(path)]
    return 0.1 if min(counts, default=0) >= _SMALL_CLASS else 0.2


class _Image(NamedTuple):
    """An image that was looked at."""

    path: str
    size: Tuple[int, int]
    is_transparent: bool

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


def _probe(source: FolderSource) -> Tuple[List[_Image], List[str]]:
    """Returns images spread over the source, and the reasons why others cannot be read."""
    indices = np.unique(np.linspace(0, len(source) - 1, _NUM_PROBED).astype(np.int64))
    decoded = set(indices[:: max(1, len(indices) // _NUM_DECODED)].tolist())
    found: List[_Image] = []
    unreadable: List[str] = []
    for index in indices.tolist():
        try:
            found.append(_look_at(source.encoded(index), is_decoded=index in decoded))
        except DataError as error:
            unreadable.append(str(error))
    return found, unreadable


def _look_at(picture: EncodedImage, *, is_decoded: bool) -> _Image:
    """Reads the header of an image; decodes the image if `is_decoded`, or if it is neither a JPEG nor large.

    Raises DataError if the image is damaged, as far as this shows.
    """
    header = picture.header()
    is_large = header.size[0] * header.size[1] > LARGE
    if header.may_be_transparent and not is_large:
        return _Image(picture.name, header.size, has_transparency(picture))
    size = header.size if is_large else picture.size
    if is_decoded:
        picture.rgb()
    return _Image(picture.name, size, header.may_be_transparent)

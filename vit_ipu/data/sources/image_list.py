"""Lists of image files for prediction: files as they are given, and all images below folders."""

from __future__ import annotations

import os
from typing import Iterator, List, Sequence, Set, Tuple, Union

from vit_ipu.data.sources.base import IMAGE_SUFFIXES, is_of_system
from vit_ipu.errors import DataError
from vit_ipu.text import Notify, counted, escaped

_Identity = Tuple[int, int]
"""Device and inode of a folder."""


class ImageList:
    """The paths of image files in order. Those of a folder are one string, so that a million take about 30 MB."""

    def __init__(self) -> None:
        self._parts: List[Union[str, Tuple[str, str]]] = []
        """Paths of files, and folders, each with the names of its images, of which each ends with a NUL."""
        self._count = 0

    def add_file(self, path: str) -> None:
        self._parts.append(path)
        self._count += 1

    def add_folder(self, folder: str, names: Sequence[str]) -> None:
        self._parts.append((folder, "".join(f"{name}\0" for name in names)))
        self._count += len(names)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            if isinstance(part, str):
                yield part
            else:
                yield from _paths_in(*part)


def _paths_in(folder: str, names: str) -> Iterator[str]:
    start = 0
    while start < len(names):
        end = names.index("\0", start)
        yield os.path.join(folder, names[start:end])
        start = end + 1


def find_images(paths: Sequence[str], notify: Notify) -> ImageList:
    """Lists the files in `paths`, and all images below the folders in `paths`.

    The images in a folder come in alphabetical order, then those in its folders. Images are files with a suffix of
    IMAGE_SUFFIXES; hidden files and those of an operating system are left out. `notify` receives a note on other
    entries. Raises DataError if there is no path, or no image below a folder, or a folder that cannot be listed.
    """
    if not paths:
        raise DataError("there are no images to predict: give image files or folders of images")
    found = ImageList()
    for path in paths:
        if not os.path.isdir(path):
            found.add_file(path)
            continue
        before, num_others = len(found), _add_below(path, found, set())
        if len(found) == before:
            raise DataError(f"no images below {escaped(path)}: images are files with a suffix of {_SUFFIXES}")
        if num_others:
            entries = counted(num_others, "entry", "entries")
            notify(f"note: left out {entries} below {escaped(path)}: images are files with a suffix of {_SUFFIXES}")
    return found


_SUFFIXES = " ".join(IMAGE_SUFFIXES)


def _add_below(folder: str, found: ImageList, above: Set[_Identity]) -> int:
    """Adds the images below a folder, and returns the number of other entries.

    `above` are the folders that contain it: a link to one of them is left out, because it leads around in a circle.
    """
    status = os.stat(folder)
    identity = status.st_dev, status.st_ino
    if identity in above:
        return 1
    images, folders, num_others = _entries(folder)
    if images:
        found.add_folder(folder, images)
    return num_others + sum(_add_below(os.path.join(folder, name), found, above | {identity}) for name in folders)


def _entries(folder: str) -> Tuple[List[str], List[str], int]:
    """Returns the names of the images and of the folders in a folder, sorted, and the number of other entries."""
    images, folders, num_others = [], [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_of_system(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    images.append(entry.name)
                else:
                    num_others += 1
    except OSError as error:
        raise DataError(f"cannot list {escaped(error.filename or folder)}: {error.strerror}") from None
    return sorted(images), sorted(folders), num_others

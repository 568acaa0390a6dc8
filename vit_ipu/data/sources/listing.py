"""Listings of image files, which are made once: the next start takes a listing from the cache.

A folder of ImageNet's size takes minutes to list on a network file system. A listing is kept in
$XDG_CACHE_HOME/vit_ipu/listings and used again as long as the listed folders or files have the same names, sizes and
times of modification. An edit that changes none of these is seen only with --rescan. A damaged cache file is replaced.

A listing is a few arrays, never one object per image: workers share the arrays with the main process, and 1.2 million
paths take about 35 MB.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Callable, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from vit_ipu.data.sources.base import IMAGE_SUFFIXES, is_of_system
from vit_ipu.errors import DataError
from vit_ipu.files import cache_folder, written_whole
from vit_ipu.small_files import open_regular
from vit_ipu.text import Notify, counted, escaped

Arrays = Dict[str, "np.ndarray"]

_VERSION = 5
_WORTH_SAYING_SECONDS = 5.0
_CLOCK_NS = 2_000_000_000
"""Resolution of a file system's times: a folder that changed so shortly before may change again unnoticed."""
_LISTERS = 8


# ------------------------------------------------------------------------------------------- cache


class ListingCache:
    """A cache on the disk for arrays that take long to compute."""

    def __init__(self, *, rescan: bool = False, notify: Notify = lambda line: None) -> None:
        """`rescan`: ignore cached arrays. `notify` is told of slow listings, omitted files, and an unwritable cache.

        Each line is told once, because training and held-out images may be in one folder.
        """
        self.rescan, self._notify = rescan, notify
        self._told: Set[str] = set()
        self._said_unwritable = False

    def notify(self, text: str) -> None:
        """Tells the user a line that has not been told yet."""
        if text not in self._told:
            self._told.add(text)
            self._notify(text)

    def get(self, name: str, made_of: Sequence[str], make: Callable[[], Arrays]) -> Arrays:
        """Returns the arrays called `name` from the cache, or else from `make`, which reads the paths `made_of`."""
        key = {"name": _blob([str(_VERSION), name, *made_of]), "state": _state(made_of)}
        path = cache_folder() / "listings" / (hashlib.sha256(key["name"].tobytes()).hexdigest()[:32] + ".npz")
        kept = None if self.rescan else _read(path, key)
        if kept is not None:
            return kept
        now, start = time.time_ns(), time.monotonic()
        arrays = make()
        seconds = time.monotonic() - start
        if seconds > _WORTH_SAYING_SECONDS:
            self.notify(f"listed {name} in {seconds:.0f} s; the next start takes the list from the cache")
        if key["state"][:, 0].max(initial=0) < now - _CLOCK_NS:
            try:
                _write(path, {**arrays, **{"key_" + part: value for part, value in key.items()}})
            except OSError as error:
                self._notify_unwritable(path.parent, error.strerror or str(error))
        return arrays

    def _notify_unwritable(self, folder: Path, reason: str) -> None:
        if not self._said_unwritable:
            self.notify(f"note: cannot keep the list of images in {folder}: {reason}")
        self._said_unwritable = True


def _state(paths: Sequence[str]) -> np.ndarray:
    """Returns (n, 2) int64: time of modification in ns, and size. Raises DataError if a path does not exist."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError as error:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from None
    return np.array([(entry.st_mtime_ns, entry.st_size) for entry in found], np.int64).reshape(-1, 2)


def _read(path: Path, key: Arrays) -> Optional[Arrays]:
    """Returns the arrays in a file, or None if the file is missing, is damaged, or has another key."""
    try:
        arrays = load_arrays(path)
        if any(not np.array_equal(arrays["key_" + part], value) for part, value in key.items()):
            return None
        return {name: array for name, array in arrays.items() if not name.startswith("key_")}
    except Exception:  # numpy and zipfile raise many kinds
        return None


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, unique=True) as temporary, temporary.open("wb") as file:
        save_arrays(file, arrays)


def save_arrays(file: IO[bytes], arrays: Arrays) -> None:
    """Writes the arrays as numpy's npz, whose checksums numpy compares when it reads the file."""
    np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Arrays:
    """Returns the arrays that `save_arrays` wrote. Raises an Exception of any class if the file is missing or damaged.

    The file must not be compressed, so that its arrays cannot be larger than the file.
    """
    with open_regular(path) as file:
        with zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{path} is compressed")
            if sum(member.file_size for member in archive.infolist()) > size:
                raise ValueError(f"the arrays of {path} overlap")
        file.seek(0)
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}


# ------------------------------------------------------------------------------------------- paths


class ImagePaths:
    """The paths of many files in a few folders, as arrays."""

    def __init__(self, folders: Sequence[str], arrays: Arrays) -> None:
        """`arrays`: names, the bytes of all names; ends, the end of each name; folder, the folder's number per file."""
        self.folders = tuple(folders)
        self._names, self._ends, self.folder = arrays["names"], arrays["ends"], arrays["folder"]

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.folders[int(self.folder[index])], self.name(index))

    def name(self, index: int) -> str:
        """Returns the name of a file in its folder."""
        start = int(self._ends[index - 1]) if index > 0 else 0
        return os.fsdecode(self._names[start : int(self._ends[index])].tobytes())

    def digest(self) -> str:
        """Returns the SHA-256 of all names and folders."""
        digest = hashlib.sha256(_blob([os.path.basename(folder) for folder in self.folders]).tobytes())
        for array in (self._names, self._ends, self.folder):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def list_images(root: Path, folders: Sequence[str], cache: ListingCache) -> ImagePaths:
    """Lists the image files in `folders` of `root`, folder after folder, each in alphabetical order.

    `folders` are names, or "" for the root itself. Links are followed; hidden files and those of an operating system
    are left out.
    """
    absolute = os.path.abspath(str(root))
    paths = [os.path.join(absolute, folder) if folder else absolute for folder in folders]
    listed = cache.get(f"the images in {absolute}", paths, lambda: _list_folders(paths))
    others = listed["others"]
    if others.any():
        folder, suffixes = folders[int(others.argmax())], " ".join(IMAGE_SUFFIXES)
        example = f" (such as in {folder})" if folder else ""
        cache.notify(
            f"note: left out {counted(int(others.sum()), 'entry', 'entries')} in {root}{example}: images are files "
            f"with a suffix of {suffixes}; folders in class folders are not searched"
        )
    return ImagePaths([os.path.join(str(root), folder) for folder in folders], listed)


def class_folders(root: Path) -> List[str]:
    """Returns the folders in `root`, sorted, without hidden folders and those of an operating system.

    Raises DataError if `root` cannot be listed, or if a link that is not named like an image leads nowhere: it may be a
    class.
    """
    names = []
    try:
        with os.scandir(str(root)) as entries:
            for entry in (entry for entry in entries if not is_of_system(entry.name)):
                if entry.is_dir():
                    names.append(entry.name)
                elif _leads_nowhere(entry.path):
                    target = escaped(os.readlink(entry.path))
                    raise DataError(
                        f"{escaped(entry.path)} links to {target}, which does not exist: correct or remove the link"
                    )
    except OSError as error:
        raise DataError(f"cannot list {error.filename or root}: {error.strerror}") from None
    return sorted(names)


def _leads_nowhere(path: str) -> bool:
    return not _is_image(path) and os.path.islink(path) and not os.path.exists(path)


def images_beside_classes(root: Path) -> List[str]:
    """Returns the names of the images in `root` itself, sorted, which have no class if `root` has class folders."""
    try:
        with os.scandir(str(root)) as entries:
            return sorted(
                entry.name
                for entry in entries
                if _is_image(entry.name) and not is_of_system(entry.name) and not entry.is_dir()
            )
    except OSError as error:
        raise DataError(f"cannot list {error.filename or root}: {error.strerror}") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _list_folders(folders: Sequence[str]) -> Arrays:
    names: List[bytes] = []
    lengths: List[np.ndarray] = []
    others: List[int] = []
    with ThreadPoolExecutor(_LISTERS) as pool:  # a network file system answers several requests at once
        for joined, ends, num_others in pool.map(_list_folder, folders):
            names.append(joined)
            lengths.append(ends)
            others.append(num_others)
    counts = [len(part) for part in lengths]
    return {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "ends": np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths])),
        "folder": np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        "others": np.array(others, np.int64),
    }


def _list_folder(folder: str) -> Tuple[bytes, np.ndarray, int]:
    """Returns the joined names of the images in a folder, the length of each name, and the number of other entries."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not is_of_system(entry.name)]
            named = [entry for entry in shown if _is_image(entry.name)]
            # A listing tells folders from files without a stat. Links count as files: to follow each would be slow.
            kept = sorted(entry.name for entry in named if not entry.is_dir(follow_symlinks=False))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None
    encoded = [os.fsencode(name) for name in kept]
    return b"".join(encoded), np.array([len(name) for name in encoded], np.int64), len(shown) - len(kept)


def _blob(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer(b"\0".join(os.fsencode(text) for text in texts), np.uint8)

"""Images in tar shards of webdataset's layout, read in any order.

webdataset streams its shards and shuffles in a window, so that order depends on the number of workers and a run cannot
resume in the middle. But an uncompressed tar stores the plain bytes of its members: with an index of (shard, offset,
size, label), any member can be read directly by pread. Shards are therefore a source like any other: the same global
shuffle, the same share of each instance and worker, and the same order after a resume, all of which the loader derives
from (seed, epoch, index).

The index is index.npz and index.json, which `vit-ipu pack` writes; without an index the headers of all shards are read
once and cached like the listing of a folder.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np

from vit_ipu.config import DataConfig
from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.pillow_formats import MAX_FILE_BYTES
from vit_ipu.data.sources.base import EncodedSource, has_split, is_of_system, require_same_classes, split_folder
from vit_ipu.data.sources.listing import Arrays, ListingCache
from vit_ipu.data.sources.shard_index import JOURNAL, classes_beside, read_index, read_table
from vit_ipu.data.sources.tar_headers import scan_shards
from vit_ipu.errors import DataError
from vit_ipu.files import expand_home
from vit_ipu.small_files import MAX_DIGITS
from vit_ipu.text import Notify, and_more, counted, shortened

_BLOCK = tarfile.BLOCKSIZE
_MAX_OPEN = 256
"""Shards that a process keeps open; the usual limit is 1,024 open files."""
MAX_SHARDS = 100_000
"""Number of shards that a pattern names at most."""
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class ShardSource(EncodedSource):
    """Images stored as members of tar files."""

    def __init__(self, shards: OpenShards, table: Arrays, classes: Sequence[str]) -> None:
        """`table`: shard, offset, size and label of each image, (n,) each."""
        super().__init__(classes, table["label"].astype(np.int64))
        self._shards = shards
        self._shard, self._offset, self._size = table["shard"], table["offset"], table["size"]

    def name(self, index: int) -> str:
        return self._shards.place(int(self._shard[index]), int(self._offset[index]))

    def encoded(self, index: int) -> EncodedImage:
        return self._shards.read(int(self._shard[index]), int(self._offset[index]), int(self._size[index]))

    def close_files(self) -> None:
        self._shards.close()


def require_shard_folder(path: str, config: DataConfig) -> None:
    """Raises DataError unless `path` is a folder, or `path` and `config.eval_path` each name shards that exist."""
    for place in () if config.eval_path is None else (path, config.eval_path):
        _find_shards(place)
    if config.eval_path is None and not expand_home(path).is_dir():
        raise DataError(
            f"data.path {path} is not a folder with train/ and val/: for a pattern of shards give data.eval_path too, "
            "the held-out shards"
        )


def open_shards(path: str, config: DataConfig, num_classes: int, split: str, cache: ListingCache) -> ShardSource:
    """Opens the images of a split in `path`, a folder with train/ and val/ as `pack` writes it.

    With `config.eval_path`, `path` and `config.eval_path` each name the shards of one split: a folder of shards, or a
    pattern with braces such as imagenet-train-{000..127}.tar. Raises DataError if shards are missing or do not match
    the index.
    """
    eval_path = config.eval_path
    require_shard_folder(path, config)
    if eval_path is None:
        root = expand_home(path)
        needed = ("train", split) if has_split(root, "train") else (split,)
        places = {name: _place_of_split(root, name) for name in dict.fromkeys(needed)}
    else:
        places = {"train": path, "eval": eval_path}
    shards = _find_shards(places[split], cache.notify)
    folder = Path(shards[0]).parent
    index = read_index(folder)
    if (folder / JOURNAL).is_file() and index is None:
        raise DataError(f"{folder} is not completely packed: run the same vit-ipu pack command again")
    if index is not None and expand_home(places[split]).is_dir():
        table, remedy = read_table(folder, shards), "run vit-ipu pack again"
    else:
        table = _scanned(shards, cache, skip_bad=config.on_error == "skip")
        remedy = "list the shards again with --rescan"
    classes = classes_beside(shards)
    if split == "eval" and "train" in places:
        trained = classes_beside(_find_shards(places["train"]))
        classes = classes or trained
        if trained:
            require_same_classes(trained, classes, folder)
    classes = classes or [f"class {label}" for label in range(num_classes)]
    _check_labels(table["label"], len(classes), shards[0])
    return ShardSource(OpenShards(shards, remedy), table, classes)


def _place_of_split(root: Path, split: str) -> str:
    try:
        return str(split_folder(root, split))
    except DataError as error:
        has_training = split == "eval" and has_split(root, "train")
        remedy = "; data.holdout: 0.1 holds out a tenth of the training images of each class" if has_training else ""
        raise DataError(f"{error}{remedy}") from None


def _scanned(shards: Sequence[str], cache: ListingCache, *, skip_bad: bool) -> Arrays:
    """Returns the table of shards that have no index. `skip_bad`: leave out samples without an image or a label."""
    absolute = [os.path.abspath(shard) for shard in shards]
    made = f"the images in {absolute[0]}{and_more(len(shards) - 1)}"
    table = cache.get(made, absolute, lambda: scan_shards(shards))
    num_invalid = int(table["num_invalid"].sum())
    if num_invalid:
        example = bytes(table["invalid"]).decode("utf-8")
        if not skip_bad:
            raise DataError(example)
        cache.notify(f"note: left out {counted(num_invalid, 'sample')}: {example}")
    return table


def expand_braces(pattern: str) -> List[str]:
    """Expands {a,b} and {000..127} as a shell does; braces may occur several times but not in each other.

    >>> expand_braces("{a,b}-{08..10}.tar")[1:4]
    ['a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if place % 2 == 0 else _alternatives(part) for place, part in enumerate(parts)]
    if math.prod(map(len, choices)) > MAX_SHARDS:
        raise DataError(f"the pattern {shortened(pattern, 80)} names more than {MAX_SHARDS:,} shards: name fewer")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _alternatives(inside: str) -> List[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is not None:
        first, last = numbers.groups()
        if max(len(first), len(last)) > MAX_DIGITS or abs(int(last) - int(first)) >= MAX_SHARDS:
            raise DataError(f"{{{shortened(inside, 80)}}} names more than {MAX_SHARDS:,} shards: name fewer")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        step = 1 if int(first) <= int(last) else -1
        return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]


def _find_shards(place: str, notify: Notify = lambda line: None) -> List[str]:
    """Returns the paths of the shards in a folder or of a pattern. Raises DataError if a shard is missing.

    A pattern may have braces, which list the required shards, and a shell's *, ? and [], which match existing files.
    `notify` is told of compressed shards in a folder, which are left out.
    """
    folder = expand_home(place)
    if folder.is_dir():
        shown = [path for path in sorted(folder.iterdir()) if not is_of_system(path.name) and not path.is_dir()]
        shards = [str(path) for path in shown if path.name.lower().endswith(".tar")]
        compressed = [path for path in shown if path.name.lower().endswith(_COMPRESSED_SUFFIXES)]
        if not shards:
            raise DataError(f"no shards in {folder}: expected {folder}/*.tar, not compressed")
        if compressed:
            notify(f"note: left out the compressed shard {compressed[0]}{and_more(len(compressed) - 1)}")
        return shards
    shards = [shard for pattern in expand_braces(str(folder)) for shard in _matching(pattern)]
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if not shards:
        raise DataError(f"no shard at {place}")
    if missing:
        raise DataError(f"no shard at {missing[0]} (missing: {len(missing)} of {len(shards)})")
    return shards


def _matching(pattern: str) -> List[str]:
    """Returns the files that match a shell pattern, or [pattern] if it has no wildcards or is a file's exact name."""
    return sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.isfile(pattern) else [pattern]


def _check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    if len(labels) == 0:
        raise DataError(f"no images in {where}")
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < num_classes:
            raise DataError(
                f"the shards beside {where} have the label {label}, but there are "
                f"{counted(num_classes, 'class', 'classes')}: see model.num_classes"
            )


# ---------------------------------------------------------------------------------- one image


class OpenShards:
    """Tar files that each process opens when they are first read, with a limited number open at a time."""

    def __init__(self, paths: Sequence[str], remedy: str) -> None:
        """`remedy`: what to do, other than copying again, if the shards do not match their index."""
        self._paths, self._remedy = tuple(paths), remedy
        self._open = lru_cache(maxsize=_MAX_OPEN)(_OpenFile)

    def __reduce__(self) -> Tuple[Any, ...]:
        return OpenShards, (self._paths, self._remedy)

    def close(self) -> None:
        """Closes the open shards."""
        self._open.cache_clear()

    def place(self, number: int, offset: int) -> str:
        """Returns the path of a shard and the position of a member's bytes in the shard."""
        return f"{self._paths[number]}, byte {offset}"

    def read(self, number: int, offset: int, size: int) -> EncodedImage:
        """Reads the member of a shard whose bytes begin at `offset`. Raises DataError if the member is not there."""
        shard = self._paths[number]
        if size > MAX_FILE_BYTES:
            raise DataError(f"{shard} has an image of {size:,} bytes, and at most {MAX_FILE_BYTES:,} are read")
        try:
            opened = self._open(shard)  # this reference keeps the file open if it leaves the cache meanwhile
            found = os.pread(opened.descriptor, _BLOCK + size, offset - _BLOCK)
        except FileNotFoundError:
            raise DataError(f"no shard at {shard}") from None
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror}") from None
        if len(found) != _BLOCK + size or _size_in(found) != size:
            raise DataError(
                f"{shard} does not match its index (no image at byte {offset}): copy it again, or {self._remedy}"
            )
        return EncodedImage(found[_BLOCK:], f"{shard}/{_name_in(found)}")


def _size_in(header: bytes) -> int:
    """Returns a member's size by its header, or -1 (POSIX 1003.1, pax); tarfile would need 20 microseconds."""
    try:
        return int(header[124:136].rstrip(b" \0"), 8)
    except ValueError:
        return -1


def _name_in(header: bytes) -> str:
    name, prefix = header[:100], header[345:500] if header[257:263] == b"ustar\0" else b""
    parts = [part.split(b"\0", 1)[0] for part in (prefix, name)]
    return b"/".join(part for part in parts if part).decode("utf-8", "surrogateescape")


class _OpenFile:
    """A file that is open as long as this object exists; pread moves no file position that processes would share."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound early: at Python's exit, `os` is gone
        if hasattr(self, "descriptor"):
            close(self.descriptor)

"""Work of the processes of `vit-ipu pack`: they read images, resize them if requested, and write shards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import re
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Callable, List, Optional, Tuple

import numpy as np
from PIL import Image

from vit_ipu.config_sections.colors import Rgb, parse_color
from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.image_file import read_bytes
from vit_ipu.data.images.pillow_formats import open_image
from vit_ipu.data.sources.folders import FolderSource
from vit_ipu.data.sources.tar_headers import scan_shard
from vit_ipu.errors import DataError, UserError
from vit_ipu.files import sha256_of, written_whole
from vit_ipu.text import shortened

TEMPORARY = ".packing-"
"""Start of the name of an unfinished file."""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
FEWER_WORKERS = ": try again with fewer --workers"
"""Remedy for processes that cannot be started, or were killed."""
Progress = Callable[[str, int, int], None]
"""Receives the split, the number of images that are done, and the number of all images."""
MEASURED = 64
"""Number of images whose sizes determine the number of images of a shard."""
TAR_OVERHEAD = 3 * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE // 2
"""Bytes of a sample besides its image: two headers, the label's block, and half a block of padding."""
_LONGEST_STEM = 60
_LONGEST_SIDE = 65_500
"""Pixels of the longest side of a JPEG, by libjpeg."""


@dataclass(frozen=True)
class PackOptions:
    """Options for the shards to be written."""

    short_side: Optional[int] = None
    """Larger images are reduced to this short side and encoded as JPEG; other images keep their bytes. None: all do."""
    quality: int = 90
    """JPEG quality of reduced images."""
    shard_size: int = 256_000_000
    """Approximate bytes of a shard."""
    skip_bad: bool = False
    """Leave out images that cannot be read instead of stopping."""
    background: Optional[Rgb] = None
    """Colour on which reduced images are laid where they are transparent; None: their transparency is dropped."""

    @classmethod
    def of(
        cls,
        short_side: Optional[int],
        quality: Optional[int],
        shard_size: str,
        on_error: str,
        background: Optional[str] = None,
    ) -> PackOptions:
        """Parses the options of a command line. Raises UserError for an invalid option."""
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([kMGT]?)B?", shard_size)
        size = int(float(match.group(1)) * _UNITS[match.group(2)]) if match is not None else 0
        if size <= 0:
            raise UserError(
                f"--shard-size {shortened(shard_size, 80)!r} is not a size: give a size such as 256MB or 1GB"
            )
        if on_error not in ("raise", "skip"):
            raise UserError(f"--on-error {on_error!r}: use raise or skip")
        if quality is not None and short_side is None:
            raise UserError(f"--quality {quality} is for images that are resized: give --short-side too")
        if background is not None and short_side is None:
            raise UserError(f"--background {background} is for images that are resized: give --short-side too")
        try:
            color = None if background is None else parse_color(background)
        except ValueError as error:
            raise UserError(f"--background {error}") from None
        return cls(short_side, cls.quality if quality is None else quality, size, on_error == "skip", color)


@dataclass(frozen=True)
class Shard:
    """A finished shard."""

    name: str
    samples: int
    bytes: int
    sha256: str
    skipped: Tuple[str, ...]
    """Paths of images that cannot be read."""


# ------------------------------------------------------------------------------------------- shards


class Counter:
    """State shared by workers and the main process: how many images are done, and whether to stop."""

    def __init__(self) -> None:
        self._done = multiprocessing.Value("q", 0)
        self._stopped = multiprocessing.Event()

    @property
    def done(self) -> int:
        """Images that are done."""
        return int(self._done.value)

    @property
    def is_stopped(self) -> bool:
        """Whether the main process has asked the workers to stop."""
        return self._stopped.is_set()

    def add(self, images: int) -> None:
        with self._done.get_lock():
            self._done.value += images

    def stop(self) -> None:
        self._stopped.set()


@dataclass(frozen=True)
class Job:
    """Data that each worker receives once."""

    source: FolderSource
    order: np.ndarray
    """Index of the image at each place of the shards."""
    folder: str
    options: PackOptions
    counter: Counter


def size_of_sample(job: Job, place: int) -> int:
    """Returns the bytes that the image at a place takes, or 0 if the image cannot be read."""
    path = job.source.paths[int(job.order[place])]
    try:
        return os.stat(path).st_size if job.options.short_side is None else len(prepare(path, job.options)[0])
    except (OSError, DataError):
        return 0


def make_shard(job: Job, name: str, first: int, last: int, noted: Optional[Shard]) -> Tuple[Shard, bool]:
    """Writes shard `name` with the images at the places `first` to `last` - 1, unless the shard exists and is right.

    Returns the shard, and whether it existed.
    """
    path = os.path.join(job.folder, name)
    is_whole = noted is not None and noted.samples + len(noted.skipped) == last - first
    if noted is not None and is_whole and has_sha256(path, noted.sha256):
        job.counter.add(last - first)
        return noted, True
    with written_whole(Path(path), prefix=TEMPORARY) as temporary, temporary.open("wb") as file:
        hashed = _Hashed(file)
        samples, skipped = _write_samples(hashed, job, range(first, last))
    return Shard(name, samples, hashed.count, hashed.digest.hexdigest(), tuple(skipped)), False


def _write_samples(file: _Hashed, job: Job, places: range) -> Tuple[int, List[str]]:
    """Writes a tar of the images at these places; returns the number of samples, and the paths of unreadable images."""
    skipped: List[str] = []
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for place in places:
            if job.counter.is_stopped:
                raise DataError("stopped")
            index = int(job.order[place])
            path = job.source.paths[index]
            try:
                data, suffix = prepare(path, job.options)
            except DataError as error:
                if not job.options.skip_bad:
                    raise DataError(f"{error} (--on-error skip leaves such images out)") from None
                skipped.append(path)
            else:
                stem = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(os.path.basename(path))[0])[:_LONGEST_STEM]
                key = f"{index:08d}_{stem}"
                _add(tar, key + suffix, data)
                _add(tar, key + ".cls", str(job.source.labels[index]).encode("ascii"))
            job.counter.add(1)
    return len(places) - len(skipped), skipped


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class _Hashed:
    """A file written from start to end that records its length and its SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.count, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.count += len(data)
        return self._file.write(data)


def has_sha256(path: str, expected: str) -> bool:
    """Tells whether the file exists and has this SHA-256."""
    try:
        return sha256_of(Path(path)) == expected
    except (FileNotFoundError, ValueError):  # ValueError: a pipe
        return False


def scan_with_keys(path: str) -> Tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a shard that pack wrote, and the index at the start of each key."""
    rows = scan_shard(path).rows
    with open(path, "rb") as file:
        names = [os.pread(file.fileno(), 8, offset - tarfile.BLOCKSIZE) for offset in rows[:, 0].tolist()]
    return rows, np.array([int(name) for name in names], np.int64)


# ----------------------------------------------------------------------------------------- an image


def prepare(path: str, options: PackOptions) -> Tuple[bytes, str]:
    """Returns an image's bytes and suffix for the shard: a JPEG (4:2:0) if the image is reduced, else the file's bytes.

    Resizing is bicubic and antialiased. An image that would be too long for a JPEG keeps its bytes, too. Raises
    DataError for an image that cannot be decoded to its end.
    """
    data, suffix = read_bytes(path), os.path.splitext(path)[1].lower()
    if options.short_side is None:
        _check(data, path)
        return data, suffix
    image = EncodedImage(data, path).on(options.background).rgb()
    if min(image.size) <= options.short_side:
        return data, suffix
    factor = options.short_side / min(image.size)
    width, height = (max(options.short_side, round(side * factor)) for side in image.size)
    if max(width, height) > _LONGEST_SIDE:
        return data, suffix
    encoded = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=options.quality)
    return encoded.getvalue(), ".jpg"


def _check(data: bytes, path: str) -> None:
    """Raises DataError unless the image can be decoded; for a JPEG at an eighth of its size, which needs all bytes."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # EncodedImage reports the reason
        warnings.simplefilter("ignore")
        with open_image(data) as opened:
            if opened.format == "JPEG":
                opened.draft(None, (1, 1))
                opened.load()
                return
    EncodedImage(data, path).rgb()

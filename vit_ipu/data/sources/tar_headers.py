"""Headers of tar shards: they give the position and the label of each image.

A sample is consecutive members KEY.jpg (or another image suffix) and KEY.cls, a number as text, or KEY.json with
"label". A key ends at the first dot of the file name, as in webdataset.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vit_ipu.data.process_pool import processes
from vit_ipu.data.sources.base import IMAGE_SUFFIXES
from vit_ipu.data.sources.listing import Arrays
from vit_ipu.errors import DataError
from vit_ipu.text import escaped

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MAX_LABEL_BYTES = 1 << 20
_MOST_NAMED = 4
"""Number of members of an invalid sample that a message names."""


class _InvalidSample(Exception):
    """Raised for a sample that does not have one image and one label: the message states what is wrong."""


def scan_shards(shards: Sequence[str]) -> Arrays:
    """Returns the table of the images in some shards, from the headers of their members, in the order of the members.

    Two more arrays are num_invalid, how many samples of each shard do not have one image and one label, and invalid,
    the UTF-8 message about one such sample.
    """
    workers = min(len(shards), os.cpu_count() or 1)
    if workers == 1:
        found = [scan_shard(shard) for shard in shards]
    else:
        with processes(workers) as pool:
            found = pool.in_order(scan_shard, [(shard,) for shard in shards])
    table = np.concatenate([scan.rows for scan in found])
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(scan.rows) for scan in found])
    example = next((scan.example for scan in found if scan.num_invalid), "")
    return {
        "shard": numbers,
        "offset": table[:, 0],
        "size": table[:, 1],
        "label": table[:, 2],
        "num_invalid": np.array([scan.num_invalid for scan in found], np.int64),
        "invalid": np.frombuffer(escaped(example).encode("utf-8"), np.uint8),
    }


class Scan(NamedTuple):
    """Samples of a shard, as found in its headers."""

    rows: np.ndarray
    """(n, 3) int64: offset, size and label of each image."""
    num_invalid: int
    """How many samples do not have one image and one label."""
    example: str
    """The message about the first invalid sample, or nothing."""


def scan_shard(shard: str) -> Scan:
    """Reads the headers of a shard. Raises DataError if the shard is incomplete."""
    rows: List[Tuple[int, int, int]] = []
    num_invalid, example = 0, ""
    try:
        with open(shard, "rb") as file:
            _refuse_compressed(file, shard)
            for key, members in itertools.groupby(_members(file, shard), key=lambda member: _key(member.name)[0]):
                try:
                    rows.append(_sample(file, shard, key, list(members)))
                except _InvalidSample as error:
                    num_invalid, example = num_invalid + 1, example or str(error)
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror or error}") from None
    return Scan(np.array(rows, np.int64).reshape(-1, 3), num_invalid, example)


def _refuse_compressed(file: BinaryIO, shard: str) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{shard} is compressed ({kind}): shards are read in any order, so unpack it")


def _members(file: BinaryIO, shard: str) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar. Raises DataError without an end marker, because tarfile takes damage for the end."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
                if member.issparse():
                    raise DataError(f"{shard}: {member.name} is stored with holes: pack without --sparse")
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    yield member
            end = tar.offset
    except tarfile.TarError as error:
        raise DataError(f"{shard} is not a tar, or is cut off: {error}") from None
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(f"{shard} is cut off or damaged at byte {end}: copy it again")


def _key(name: str) -> Tuple[str, str]:
    """Returns a member's key, up to the first dot of its file name, and its suffix, as webdataset does."""
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return (folder + "/" + stem if folder else stem), (dot + suffix).lower()


def _sample(file: BinaryIO, shard: str, key: str, members: List[tarfile.TarInfo]) -> Tuple[int, int, int]:
    """Returns offset and size of a sample's image, and its label. Raises _InvalidSample unless it has one of each."""
    by_suffix = {_key(member.name)[1]: member for member in members}
    images = [member for suffix, member in by_suffix.items() if suffix in IMAGE_SUFFIXES]
    if len(images) != 1 or len(by_suffix) != len(members):
        names = [member.name for member in members[:_MOST_NAMED]]
        names += [f"{len(members) - len(names)} more"] if len(members) > len(names) else []
        listed = ", ".join(names)
        raise _InvalidSample(
            f"{shard}: sample {key} has the members {listed}: expected one image, such as {key}.jpg, and {key}.cls "
            "(the first dot of a name ends its key)"
        )
    member = by_suffix.get(".cls") or by_suffix.get(".json")
    label = None
    if member is not None and member.size <= _MAX_LABEL_BYTES:
        text = os.pread(file.fileno(), member.size, member.offset_data)
        label = _parse_label(text, is_json=member is not by_suffix.get(".cls"))
    if label is None:
        raise _InvalidSample(
            f"{shard}: sample {key} has no label: expected a number in {key}.cls or a `label` in {key}.json, beside "
            "its image"
        )
    return images[0].offset_data, images[0].size, label


def _parse_label(text: bytes, *, is_json: bool) -> Optional[int]:
    try:
        value = json.loads(text.decode("utf-8"))["label"] if is_json else int(text)
    except (ValueError, LookupError, TypeError):
        return None
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None

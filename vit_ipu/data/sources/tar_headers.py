"""Headers of tar shards: they give the position and the label of each image.

A sample is the members KEY.jpg (or another image suffix) and KEY.cls, a number as text, or KEY.json with "label". A
key ends at the first dot of the file name, as in webdataset. The members of a sample are usually neighbours, but need
not be: `tar` without --sort=name stores files in the order in which the file system lists them. Several tars that were
joined by `cat` are read as one, like `tar --ignore-zeros`.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import tarfile
from typing import Any, BinaryIO, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vit_ipu.data.process_pool import processes
from vit_ipu.data.sources.base import IMAGE_SUFFIXES, SYSTEM_NAMES, is_of_system, parse_label
from vit_ipu.data.sources.listing import Arrays
from vit_ipu.errors import DataError
from vit_ipu.small_files import open_regular, parse_json
from vit_ipu.text import escaped, reason_of, shortened, single_line

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LABEL_SUFFIXES = (".cls", ".json")
_MAX_LABEL_BYTES = 1 << 20
_MAX_EXTENDED_BYTES = 1 << 16
"""Bytes of an extended header, which has long names."""
_GNU_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MAX_SHOWN = 40
"""Characters of a wrong label that a message shows."""
_CHUNK = 1 << 20
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
        with open_regular(shard) as file:
            _refuse_compressed(file, shard)
            for key, members in _samples(file, _members(file, shard)):
                try:
                    rows.append(_sample(file, shard, key, members))
                except _InvalidSample as error:
                    num_invalid, example = num_invalid + 1, example or str(error)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a pipe
        raise DataError(f"cannot read {shard}: {reason_of(error)}") from None
    return Scan(np.array(sorted(rows), np.int64).reshape(-1, 3), num_invalid, example)


def _refuse_compressed(file: BinaryIO, shard: str) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{shard} is compressed ({kind}): shards are read in any order, so unpack it")


class _Header(tarfile.TarInfo):
    """Header of a member; an extended header, whose content tarfile reads into memory, is bounded."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        extends = header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, *_GNU_NAMES)
        if header.size < 0 or (extends and header.size > _MAX_EXTENDED_BYTES):
            raise tarfile.ReadError(f"a header claims {header.size:,} bytes")
        return header


class _Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    """Position of its bytes in the shard."""
    size: int


def _members(file: BinaryIO, shard: str) -> Iterator[_Member]:
    """Yields the files in a tar, or in several tars that were joined by `cat`. Raises DataError for a damaged tar."""
    start: Optional[int] = 0
    while start is not None:
        end = yield from _members_of_one(file, shard, start)
        start = _next_start(file, end)


def _members_of_one(file: BinaryIO, shard: str, start: int) -> Generator[_Member, None, int]:
    """Yields the files in the tar at `start`; returns the position of its end marker.

    Raises DataError without an end marker, because tarfile takes damage for the end.
    """
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            for member in tar:
                if member.size < 0:  # an extended header states it, and tarfile would go back
                    raise tarfile.ReadError(f"the member {member.name} has {member.size} bytes")
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every member
                if member.issparse():
                    raise DataError(f"{shard}: {member.name} is stored with holes: pack without --sparse")
                _refuse_link(member, shard)
                if member.isfile() and not _is_of_system(member.name):
                    yield _Member(member.name, member.offset_data, member.size)
            end = int(tar.offset)
    except DataError:
        raise
    except Exception as error:  # tarfile raises many kinds for damaged extended headers
        raise DataError(f"{shard} is not a tar, or is cut off: {reason_of(error)}") from None
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(f"{shard} is cut off or damaged at byte {end}: copy it again")
    return end


def _refuse_link(member: tarfile.TarInfo, shard: str) -> None:
    """Raises DataError for an image or a label that is stored as a link, because its bytes are elsewhere."""
    is_needed = _key(member.name)[1] in (*IMAGE_SUFFIXES, *_LABEL_SUFFIXES) and not _is_of_system(member.name)
    if (member.issym() or member.islnk()) and is_needed:
        raise DataError(
            f"{shard}: {member.name} is stored as a link to {member.linkname}: pack with tar --dereference "
            "--hard-dereference"
        )


def _is_of_system(name: str) -> bool:
    """Tells whether a member is hidden, or was made by an operating system, or is in a folder that was."""
    return is_of_system(os.path.basename(name)) or not SYSTEM_NAMES.isdisjoint(name.lower().split("/"))


def _next_start(file: BinaryIO, end: int) -> Optional[int]:
    """Returns the position of the first block after an end marker that is not only zeros, or None without one.

    A last line end, which is shorter than a block, is what an editor or a shell's echo adds.
    """
    while True:
        file.seek(end)
        chunk = file.read(_CHUNK)
        rest = chunk.lstrip(b"\0")
        if rest:
            start = end + len(chunk) - len(rest)
            file.seek(start)
            tail = file.read(_BLOCK)
            is_line_end = len(tail) < _BLOCK and not tail.strip(b"\0\r\n")
            return None if is_line_end else start // _BLOCK * _BLOCK
        if not chunk:
            return None
        end = _end_of_hole(file, end + len(chunk))


def _end_of_hole(file: BinaryIO, start: int) -> int:
    """Returns where the file is on the disk again: a file that takes no place there can have terabytes of zeros."""
    descriptor = file.fileno()
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        return os.fstat(descriptor).st_size if error.errno == errno.ENXIO else start
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)  # the file's buffer counts on it


def _key(name: str) -> Tuple[str, str]:
    """Returns a member's key, up to the first dot of its file name, and its suffix, as webdataset does."""
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return (folder + "/" + stem if folder else stem), (dot + suffix).lower()


def _samples(file: BinaryIO, members: Iterable[_Member]) -> Iterator[Tuple[str, List[_Member]]]:
    """Yields each key with its members: first keys whose neighbours have an image and a label, then the other keys.

    KEY.json with other metadata than a label is not a label, so that KEY.cls may follow anywhere.
    """
    whole: Dict[str, bool] = {}  # whether the label is in KEY.cls
    apart: Dict[str, List[_Member]] = {}
    for key, neighbours in itertools.groupby(members, key=lambda member: _key(member.name)[0]):
        group = list(neighbours)
        if _has(group, IMAGE_SUFFIXES) and _has_label(file, group):
            whole[key] = _has(group, (".cls",))
            yield key, group
        else:
            apart.setdefault(key, []).extend(group)
    for key, group in apart.items():
        if key not in whole or _has(group, (*IMAGE_SUFFIXES, ".cls")) or (not whole[key] and _has_label(file, group)):
            yield key, group


def _has_label(file: BinaryIO, members: Iterable[_Member]) -> bool:
    """Tells whether there is a KEY.cls, or a KEY.json with a `label`."""
    for member in members:
        suffix = _key(member.name)[1]
        if suffix == ".cls":
            return True
        is_read = suffix == ".json" and member.size <= _MAX_LABEL_BYTES
        if is_read and _label_in_json(_text(file, member), member.name)[0] is not None:
            return True
    return False


def _text(file: BinaryIO, member: _Member) -> str:
    return os.pread(file.fileno(), member.size, member.offset).decode("utf-8-sig", "replace")


def _has(members: Iterable[_Member], suffixes: Sequence[str]) -> bool:
    return any(_key(member.name)[1] in suffixes for member in members)


def _sample(file: BinaryIO, shard: str, key: str, members: List[_Member]) -> Tuple[int, int, int]:
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
    try:
        return images[0].offset, images[0].size, _label(file, key, by_suffix)
    except ValueError as error:
        raise _InvalidSample(f"{shard}: sample {key} has no label: {error}") from None


def _label(file: BinaryIO, key: str, by_suffix: Dict[str, _Member]) -> int:
    """Returns the label of a sample. Raises ValueError with a message without a label, or for an invalid label."""
    suffix = next((suffix for suffix in _LABEL_SUFFIXES if suffix in by_suffix), None)
    if suffix is None:
        raise ValueError(f"expected a number in {key}.cls or a `label` in {key}.json")
    member = by_suffix[suffix]
    if member.size > _MAX_LABEL_BYTES:
        raise ValueError(f"{member.name} has {member.size:,} bytes; expected a number")
    text = _text(file, member)
    if suffix == ".cls":
        label, found = parse_label(text), f"{member.name} holds {_shown(text)}"
    else:
        label, found = _label_in_json(text, member.name)
    if label is None:
        raise ValueError(f"{found}; expected a whole number from 0, such as 7")
    return label


def _label_in_json(text: str, name: str) -> Tuple[Optional[int], str]:
    """Returns the `label` of a JSON object, or None, and what was found. 3.0 is 3, because JSON has one kind of number
    (JSON Schema 2020-12, core, 4.2.3)."""
    try:
        value = parse_json(text, allow_nan=True)["label"]
    except (ValueError, LookupError, TypeError):
        return None, f"{name} is not a JSON object with a `label`"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return parse_label(str(int(value))) if is_number else None, f"`label` in {name} is {_shown(json.dumps(value))}"


def _shown(text: str) -> str:
    return repr(shortened(single_line(text), _MAX_SHOWN))

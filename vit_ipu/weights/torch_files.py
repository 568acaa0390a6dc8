"""Opens files of torch.save: the pickled value, read as inert values, and the storages of its tensors.

Since 1.6 torch writes a zip with a member `data.pkl` and a member `data/KEY` for each storage. Before that, and still
on request (mmpretrain's published files), it wrote pickles one after the other, and the storages after them; the source
is torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

import sys
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Tuple

import torch

from vit_ipu.weights.inert import unpickle
from vit_ipu.weights.untrusted import head_of, members_of, refusal

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}
"""Type of the elements of each class of storages in a pickle."""


@dataclass(frozen=True)
class Saved:
    """The content of a file of torch.save."""

    value: Any
    """The pickled value, inert, with references to storages."""
    sizes: Dict[str, int]
    """Number of bytes of each storage, by its key."""
    read: Callable[[str], bytearray]
    """Function that returns the bytes of the storage of a key, while the file is open."""


@contextmanager
def opened(path: Path) -> Iterator[Saved]:
    """Opens a file of torch.save. Raises CheckpointError if it is another kind of file, or its pickle is damaged."""
    head = head_of(path)
    if head[257:262] == b"ustar":
        raise refusal(path, "it is a tar file, the format of torch's first years: save it again with a newer torch")
    if head.startswith(b"PK\x03\x04"):
        root = _root_of_zip(path)
        with zipfile.ZipFile(str(path)) as archive:
            yield _zip(path, archive, root)
    elif head.startswith(b"\x80"):
        with path.open("rb") as file:
            yield _sequence(path, file)
    else:
        raise refusal(path, "it is not a file of torch.save")


def element_size(dtype: str) -> int:
    """Returns the bytes of an element of one of the types in STORAGES."""
    plain = dtype[1:] if dtype.startswith("q") else dtype
    return torch.empty(0, dtype=getattr(torch, plain)).element_size()


def _unpickled(path: Path, file: IO[bytes]) -> Tuple[Any, List[Any]]:
    try:
        return unpickle(file)
    except Exception as error:  # of an unpickler on untrusted bytes: no list of its errors is complete
        raise refusal(path, "its pickle is damaged: fetch it again") from error


def _check_order(path: Path, order: str) -> None:
    if order != sys.byteorder:
        raise refusal(path, f"its numbers are {order}-endian: save it again on a computer like this one")


# ---------------------------------------------------------------------------------------------- zip


def _root_of_zip(path: Path) -> str:
    """Returns the folder in a zip of a pickle and storages, with its slash. Raises CheckpointError for another zip."""
    with zipfile.ZipFile(str(path)) as archive:
        members = members_of(path, archive)
    parts = [member.filename.split("/") for member in members]
    if any(len(part) > 1 and part[1] in ("code", "constants.pkl") for part in parts):
        raise refusal(path, "it is a TorchScript program: save its state_dict() with torch.save instead")
    roots = ["/".join([*part[:-1], ""]) for part in parts if part[-1] == "data.pkl"]
    if len(roots) != 1:
        raise refusal(path, f"it has {len(roots)} members data.pkl where torch.save writes one")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise refusal(path, "its members are compressed, which torch.save never does: save it again with torch")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise refusal(path, "its members overlap, which torch.save never does")
    return roots[0]


def _zip(path: Path, archive: zipfile.ZipFile, root: str) -> Saved:
    folder = root + "data/"
    members = {member.filename: member.file_size for member in archive.infolist()}
    if root + "byteorder" in members:  # since torch 2.1
        _check_order(path, archive.read(root + "byteorder").decode("ascii"))
    with archive.open(root + "data.pkl") as file:
        value, _ = _unpickled(path, file)
    sizes = {name[len(folder) :]: size for name, size in members.items() if name.startswith(folder)}
    return Saved(value, sizes, lambda key: bytearray(archive.read(folder + key)))


# ------------------------------------------------------------------------- pickles one after the other


def _sequence(path: Path, file: IO[bytes]) -> Saved:
    magic, _ = _unpickled(path, file)
    if magic != _MAGIC:
        raise refusal(path, "it is a bare pickle, not a file of torch.save: save its state_dict() with torch.save")
    version, _ = _unpickled(path, file)
    system, _ = _unpickled(path, file)
    if version != _VERSION or not isinstance(system, dict):
        found = f"version {version}" if isinstance(version, int) else "version"
        raise refusal(path, f"its {found} is not {_VERSION}: save it again with a newer torch")
    _check_order(path, "little" if system.get("little_endian", True) else "big")
    value, references = _unpickled(path, file)
    keys, _ = _unpickled(path, file)
    places = _places(path, file, keys, _element_sizes(path, references))

    def read(key: str) -> bytearray:
        start, size = places[key]
        file.seek(start)
        return bytearray(file.read(size))

    return Saved(value, {key: size for key, (_, size) in places.items()}, read)


def _element_sizes(path: Path, references: List[Any]) -> Dict[str, int]:
    """Returns the bytes of an element of each storage, by its key. Raises an Exception if a reference is damaged."""
    sizes: Dict[str, int] = {}
    for what, *reference in (tuple(reference[:7]) for reference in references):
        if what == "module":
            raise refusal(path, "it is a complete module: save its state_dict() with torch.save instead")
        storage_class, key, _, _, view = reference
        if what != "storage" or view is not None or not isinstance(key, str):
            named = f"storage {key}" if what == "storage" and isinstance(key, str) else "data beside its pickle"
            raise refusal(path, f"its reference to {named} is not to a complete storage: save it again with torch")
        sizes[key] = element_size(STORAGES[storage_class.name.rpartition(".")[2]])
    return sizes


def _places(path: Path, file: IO[bytes], keys: List[str], element_sizes: Dict[str, int]) -> Dict[str, Tuple[int, int]]:
    """Returns start and size in bytes of each storage. Raises CheckpointError if the file ends before the last one."""
    start, end = file.tell(), path.stat().st_size
    places: Dict[str, Tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str):
            raise refusal(path, "its table of storages is damaged: fetch it again")
        file.seek(start)
        size = int.from_bytes(file.read(8), sys.byteorder) * element_sizes[key]
        if start + 8 + size > end:
            raise refusal(path, f"it ends within a storage of {size} bytes: fetch it again")
        places[key] = (start + 8, size)
        start += 8 + size
    return places

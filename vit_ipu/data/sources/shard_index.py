"""The index beside tar shards, which `vit-ipu pack` writes: index.json for people, index.npz for reading."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from vit_ipu.data.sources.listing import Arrays, load_arrays
from vit_ipu.errors import DataError
from vit_ipu.small_files import MAX_LIST_BYTES, read_json, read_text
from vit_ipu.text import reason_of

INDEX, TABLE = "index.json", "index.npz"
FORMAT = "webdataset: KEY.jpg"
"""Start of the format entry in the index of `pack`; other programs write an index.json, too."""
JOURNAL = ".packing.jsonl"
"""The journal that `pack` writes while it packs."""
CLASS_FILES = ("classes.txt", "classnames.txt")


def read_index(folder: Path) -> Optional[Dict[str, Any]]:
    """Returns the index that `pack` wrote in a folder, or None without one. Raises DataError if it is damaged."""
    try:
        index = read_json(folder / INDEX, limit=MAX_LIST_BYTES)
        if not isinstance(index, dict) or not str(index.get("format")).startswith(FORMAT):
            return None  # an index of another program
        texts = [*index["classes"], *(shard[key] for shard in index["shards"] for key in ("name", "sha256"))]
        numbers = [index["samples"], *(shard[key] for shard in index["shards"] for key in ("bytes", "samples"))]
        numbers.append(index["settings"]["version"])
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
            raise TypeError
        if not 1 <= len(index["shards"]) == index["settings"]["shards"]:
            raise ValueError
        return index
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {folder / INDEX}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise DataError(f"{folder / INDEX} is damaged: copy it again, or move it away") from None


def require_index(folder: Path) -> Dict[str, Any]:
    """Returns the index that `pack` wrote in a folder. Raises DataError if there is none."""
    index = read_index(folder)
    if index is None:
        raise DataError(f"{folder / INDEX} was not written by vit-ipu pack")
    return index


def read_table(folder: Path, shards: Sequence[str]) -> Arrays:
    """Returns the table of the shards in a folder. Raises DataError if the shards do not match the index."""
    index = require_index(folder)
    for shard in index["shards"]:
        path = folder / shard["name"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes, not {shard['bytes']}"
            raise DataError(f"{path} {found}: copy it again, or run vit-ipu pack again")
    unlisted = {os.path.basename(shard) for shard in shards} - {shard["name"] for shard in index["shards"]}
    if unlisted:
        raise DataError(f"{folder / min(unlisted)} is not in {INDEX}: move it away")
    try:
        arrays = load_arrays(folder / TABLE)
        table = {name: arrays[name] for name in ("shard", "offset", "size", "label")}
        _check_table(table, index["shards"])
        if arrays["sha256"].tolist() != [shard["sha256"] for shard in index["shards"]]:
            raise ValueError
    except Exception:  # numpy and zipfile raise many kinds
        raise DataError(f"{folder / TABLE} is missing or damaged: copy it again, or run vit-ipu pack again") from None
    return table


def _check_table(table: Arrays, shards: Sequence[Dict[str, Any]]) -> None:
    """Raises ValueError unless each row is the place of an image inside of its shard."""
    shape = (len(table["shard"]),)
    if any(array.shape != shape or array.dtype.kind not in "iu" for array in table.values()):
        raise ValueError
    shard, offset, size = table["shard"], table["offset"].astype(np.int64), table["size"].astype(np.int64)
    if len(shard) and not 0 <= int(shard.min()) <= int(shard.max()) < len(shards):
        raise ValueError
    ends = np.array([entry["bytes"] for entry in shards], np.int64)[shard.astype(np.int64)]
    if (offset < tarfile.BLOCKSIZE).any() or (size < 0).any() or (size > ends - offset).any():
        raise ValueError


def classes_beside(shards: Sequence[str]) -> List[str]:
    """Returns the class names in the index of `pack`, or else in a list beside the shards; [] if there are none."""
    index = read_index(Path(shards[0]).parent)
    return _named_classes(Path(shards[0]).parent) if index is None else list(index["classes"])


def _named_classes(folder: Path) -> List[str]:
    """Returns the class names in a list beside the shards, one per line, or [] without a list."""
    for place in (folder, folder.parent):
        for name in CLASS_FILES:
            if (place / name).is_file():
                try:
                    return read_text(place / name, encoding="utf-8-sig").rstrip().splitlines()
                except (OSError, ValueError) as error:
                    raise DataError(f"cannot read {place / name}: {reason_of(error)}") from None
    return []

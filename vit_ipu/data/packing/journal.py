"""The journal of `vit-ipu pack`: a line of JSON for the settings, and a line for each finished shard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any, Dict, List

from vit_ipu.data.sources.shard_index import JOURNAL
from vit_ipu.errors import DataError, UserError
from vit_ipu.files import lock
from vit_ipu.small_files import MAX_LIST_BYTES, parse_json

_MAX_SHARDS = 1_000_000
SURPLUS = "surplus"
"""Key of the names of all earlier shards, none of which is kept: only the settings that --rescan writes have it."""


def lock_journal(journal: IO[str], folder: Path) -> None:
    """Locks `folder` for this process while `journal` is open. Raises UserError if another process has the lock."""
    if not lock(journal):
        raise UserError(f"another process is packing into {folder}: wait for it, or stop it")


def append_record(journal: IO[str], record: Dict[str, Any]) -> None:
    """Appends a record, which is on the disk when this function returns."""
    journal.write(json.dumps(record) + "\n")
    journal.flush()
    os.fsync(journal.fileno())


def read_journal(journal: IO[str], folder: Path) -> List[Dict[str, Any]]:
    """Returns the records, and removes an incomplete last line. Raises DataError if the journal is damaged."""
    journal.seek(0)
    try:
        if os.fstat(journal.fileno()).st_size > MAX_LIST_BYTES:
            raise ValueError
        text = journal.read()
        whole = text[: text.rfind("\n") + 1]
        records = [parse_json(line) for line in whole.splitlines()]
        if not all(map(_is_record, records)):
            raise ValueError
    except ValueError:  # JSON's and Unicode's errors are ValueErrors
        raise DataError(f"{folder / JOURNAL} is damaged: give another TARGET") from None
    journal.truncate(len(whole.encode("utf-8")))
    return records


def _is_record(record: Any) -> bool:
    """Tells whether the record describes settings or a shard."""
    if not isinstance(record, dict) or not {"version", "name"} & set(record):
        return False
    shards, surplus = record.get("shards", 1), record.get(SURPLUS, [])
    numbers = [record.get(key, 0) for key in ("samples", "bytes")]
    texts = [record.get("name", ""), record.get("sha256", "")]
    names = [surplus, record.get("skipped", [])]
    return (
        isinstance(shards, int)
        and 1 <= shards <= _MAX_SHARDS
        and all(isinstance(number, int) for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(listed, list) and all(isinstance(name, str) for name in listed) for listed in names)
    )

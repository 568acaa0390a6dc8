"""Checks that packed shards are as they were written: `vit-ipu pack --verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from vit_ipu.data.packing.jobs import (
    FEWER_WORKERS,
    Progress,
    has_sha256,
)
from vit_ipu.data.packing.splits import SPLITS, TRAIN
from vit_ipu.data.process_pool import processes
from vit_ipu.data.sources.shard_index import (
    INDEX,
    JOURNAL,
    read_index,
    read_table,
    require_index,
)
from vit_ipu.errors import DataError
from vit_ipu.text import and_more


def verify(target: Path, *, workers: int, progress: Progress = lambda split, done, total: None) -> Dict[str, int]:
    """Reads every shard, and returns the number of images of each split. Raises DataError if a shard has changed."""
    folders = [target / name for name in SPLITS.values()]
    if not any((folder / own).is_file() for folder in folders for own in (INDEX, JOURNAL)):
        raise DataError(f"{target} has no shards of vit-ipu pack: expected {target}/train/{INDEX}")
    if (read_index(target / TRAIN) or {}).get("splits") == [TRAIN]:
        folders = [target / TRAIN]
    for folder in folders:
        if not (folder / INDEX).is_file():
            raise DataError(f"{folder} is not completely packed: run the same vit-ipu pack command again")
    counts = {}
    for folder in folders:
        index, done, wrong = require_index(folder), 0, []
        tasks = [(str(folder / shard["name"]), shard["sha256"]) for shard in index["shards"]]
        with processes(workers, remedy=FEWER_WORKERS) as pool:
            for number, is_right in pool.finished(has_sha256, tasks):
                wrong += [] if is_right else [index["shards"][number]["name"]]
                done += index["shards"][number]["samples"]
                progress("verify " + folder.name, done, index["samples"])
        if wrong:
            raise DataError(
                f"{folder / min(wrong)} is missing or has changed{and_more(len(wrong) - 1)}: run the same vit-ipu pack "
                "command again, which rewrites such shards"
            )
        read_table(folder, sorted(str(path) for path in folder.glob("*.tar")))
        counts[folder.name] = index["samples"]
    return counts

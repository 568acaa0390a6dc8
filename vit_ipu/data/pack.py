"""Writing a folder of images as tar shards that any number of hosts read quickly.

TARGET/train and TARGET/val each get shards in webdataset's layout (KEY.jpg and KEY.cls; the class names are in
classes.txt), index.json for people and for --verify, and index.npz, which says where each image lies. Images lie
shuffled by a fixed seed, so that a program that streams the shards sees all classes; index.npz lists them in the
order of the folder, so that a run from the shards takes the same images in the same order as one from the folder.

Which images a shard gets is settled beforehand, by their number, so that shards are made side by side and come out
the same however many processes make them. A shard appears by a rename when it is whole and on the disk, and is then
noted in a journal; a killed run goes on after the last one noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, Generator, List, Sequence, Tuple

import numpy as np

from vit_ipu.config import UserError
from vit_ipu.data.base import split_folder
from vit_ipu.data.decode import DataError
from vit_ipu.data.folders import FolderSource, imagenet_root, is_imagenet, open_folders, open_imagenet
from vit_ipu.data.listing import ListingCache, save_arrays
from vit_ipu.data.pack_jobs import (
    MEASURED,
    TAR_OVERHEAD,
    TEMPORARY,
    Job,
    PackOptions,
    Shard,
    State,
    begin,
    has_sha256,
    make_shard,
    scan_with_keys,
    size_of_sample,
)
from vit_ipu.data.processes import processes
from vit_ipu.data.shards import CLASS_FILES, INDEX, JOURNAL, TABLE, read_index, read_table, require_index

SPLITS = {"train": "train", "eval": "val"}
"""What the folder of each split is called."""
_VERSION = 1
_SEED = 0
_FEWER = ": try again with fewer --workers"


@dataclass(frozen=True)
class PackedSplit:
    """What was packed of one split."""

    samples: int
    bytes: int
    shards: int
    kept: int
    """Shards of an earlier run that were right."""
    skipped: Tuple[str, ...]


Progress = Callable[[str, int, int], None]
"""Hears the split, how many images are done, and how many there are."""


class PackInterrupted(Exception):
    """Ctrl-C: the message says how much is done."""


def pack(
    source: Path,
    target: Path,
    options: PackOptions,
    *,
    workers: int,
    cache: ListingCache,
    progress: Progress = lambda split, done, total: None,
) -> Dict[str, PackedSplit]:
    """Packs both splits of an image folder, or of ImageNet in its own layout; finishes what an earlier run began.

    Raises UserError for images or a target that cannot be used, PackInterrupted at Ctrl-C.
    """
    if not source.is_dir():
        raise DataError("{} is not a folder".format(source))
    opener = open_imagenet if is_imagenet(source) else open_folders
    images = {name: opener(source, split, cache) for split, name in SPLITS.items()}
    _refuse_strange_target(target, source)
    packers = [_Packer(found, target / name, name, options, anew=cache.rescan) for name, found in images.items()]
    return {name: packer.run(workers, progress) for name, packer in zip(images, packers)}


def verify(target: Path, *, workers: int, progress: Progress = lambda split, done, total: None) -> Dict[str, int]:
    """The number of images of each split, after every shard was read. Raises DataError if one is not as written."""
    folders = [target / name for name in SPLITS.values()]
    if not any((folder / own).is_file() for folder in folders for own in (INDEX, JOURNAL)):
        raise DataError("{} holds no shards of pack: expected {}/{}/{}".format(target, target, "train", INDEX))
    for folder in folders:
        if not (folder / INDEX).is_file():
            raise DataError("{} is not packed to its end: run the same vit-ipu pack again".format(folder))
    counts = {}
    for folder in folders:
        index, done, wrong = require_index(folder), 0, []
        tasks = [(str(folder / shard["name"]), shard["sha256"]) for shard in index["shards"]]
        with processes(workers, remedy=_FEWER) as pool:
            for number, is_right in pool.finished(has_sha256, tasks):
                wrong += [] if is_right else [index["shards"][number]["name"]]
                done += index["shards"][number]["samples"]
                progress("verify " + folder.name, done, index["samples"])
        if wrong:
            raise DataError(
                "{} is missing or not as it was written, and {} other shards: run the same vit-ipu pack again, which "
                "makes them anew".format(folder / min(wrong), len(wrong) - 1)
            )
        read_table(folder, [str(folder / shard["name"]) for shard in index["shards"]])
        counts[folder.name] = index["samples"]
    return counts


def _refuse_strange_target(target: Path, source: Path) -> None:
    """Raises UserError if the target is a file, among the images, or a folder with anything but shards of ours."""
    if target.exists() and not target.is_dir():
        raise UserError("{} is a file: give another TARGET".format(target))
    for split in SPLITS:
        images = split_folder(imagenet_root(source), split)
        if images.resolve() in (target.resolve(), *target.resolve().parents):
            raise UserError("{} is in {}, among the images: give another TARGET".format(target, images))
    for name in SPLITS.values():
        folder = target / name
        is_ours = (folder / JOURNAL).is_file() or read_index(folder) is not None
        if folder.is_dir() and any(folder.iterdir()) and not is_ours:
            raise UserError("{} holds files that pack has not written: give another TARGET".format(folder))


# --------------------------------------------------------------------------------------- one split


class _Packer:
    """The shards of one split."""

    def __init__(self, source: FolderSource, folder: Path, name: str, options: PackOptions, *, anew: bool) -> None:
        """`anew`: keep no shard of an earlier run."""
        self._anew = anew
        self._source, self._folder, self._name, self._options = source, folder, name, options
        self._job = Job(source, np.random.default_rng(_SEED).permutation(len(source)), str(folder), options)
        self._plan: Dict[str, Tuple[int, int]] = {}
        self._settings: Dict[str, Any] = {
            "version": _VERSION,
            "short_side": options.short_side,
            "quality": options.quality if options.short_side else None,
            "shard_size": options.shard_size,
            "seed": _SEED,
            "images": len(source),
            "images_sha256": source.paths.digest(),
            "labels_sha256": hashlib.sha256(source.labels.tobytes()).hexdigest(),
        }

    def run(self, workers: int, progress: Progress) -> PackedSplit:
        """Makes the shards that are not there yet, and then the index."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / JOURNAL).open("a+", encoding="utf-8") as journal:
                _lock(journal, self._folder)
                self._remove_temporaries()
                try:
                    return self._run(journal, workers, progress)
                finally:
                    self._remove_temporaries()
        except OSError as error:
            error.filename = error.filename or str(self._folder)  # such as of a disk that is full
            raise

    def _run(self, journal: IO[str], workers: int, progress: Progress) -> PackedSplit:
        finished: Dict[str, Shard] = {}
        kept = 0
        try:
            noted = self._begin(journal, workers, progress)
            with contextlib.closing(self._make(noted, min(workers, len(self._plan)), progress)) as made:
                for shard, was_kept in made:
                    finished[shard.name] = shard
                    kept += was_kept
                    if not was_kept:
                        _append(journal, asdict(shard))
        except KeyboardInterrupt:
            of_all = "of {} ".format(len(self._plan)) if self._plan else ""
            raise PackInterrupted("{} {}shards of {} are done".format(len(finished), of_all, self._name)) from None
        shards = [finished[name] for name in self._plan]
        if not any(shard.samples for shard in shards):
            raise DataError("none of the {:,} images of {} can be read".format(len(self._source), self._name))
        self._write_index(shards, workers)
        os.unlink(str(self._folder / JOURNAL))
        skipped = tuple(path for shard in shards for path in shard.skipped)
        samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
        return PackedSplit(samples, size, len(shards), kept, skipped)

    # ---------------------------------------------------------------------------------- the shards

    def _begin(self, journal: IO[str], workers: int, progress: Progress) -> Dict[str, Shard]:
        """Settles which images each shard gets, as an earlier run did; the shards that it made, by name."""
        records = self._read_records(journal)
        before = next((record for record in records if "version" in record), None)
        num_shards = self._choose_num_shards(workers, progress) if before is None else before["shards"]
        bounds = np.linspace(0, len(self._source), num_shards + 1).astype(np.int64).tolist()
        digits = max(5, len(str(num_shards - 1)))
        self._settings["shards"] = num_shards
        self._plan = {
            "{}-{:0{}d}.tar".format(self._name, number, digits): (bounds[number], bounds[number + 1])
            for number in range(num_shards)
        }
        if before is None:
            self._forget(journal)
        _append(journal, self._settings)
        fields = Shard.__dataclass_fields__
        noted = [Shard(**{key: record[key] for key in fields}) for record in records if set(fields) <= set(record)]
        return {shard.name: shard for shard in noted if self._options.skip_bad or not shard.skipped}

    def _choose_num_shards(self, workers: int, progress: Progress) -> int:
        """By the sizes of some samples, which are those of their files unless they are resized."""
        places, sizes = list(range(min(MEASURED, len(self._source)))), []
        with processes(workers, begin, self._job, State(), remedy=_FEWER) as pool:
            for _, size in pool.finished(size_of_sample, [(place,) for place in places]):
                sizes.append(size)
                if self._options.short_side is not None:
                    progress("measure " + self._name, len(sizes), len(places))
        mean = sum(sizes) / max(1, sum(size > 0 for size in sizes)) + TAR_OVERHEAD
        return max(1, min(len(self._source), round(mean * len(self._source) / self._options.shard_size)))

    def _make(
        self, noted: Dict[str, Shard], workers: int, progress: Progress
    ) -> "Generator[Tuple[Shard, bool], None, None]":
        """Each shard when it is there, and whether it was before."""
        total, state = len(self._source), State()
        tasks = [(name, first, last, noted.get(name)) for name, (first, last) in self._plan.items()]
        with processes(workers, begin, self._job, state, remedy=_FEWER) as pool:
            try:
                for _, made in pool.finished(make_shard, tasks, lambda: progress(self._name, state.count.value, total)):
                    yield made
            finally:
                state.stop.set()

    # ------------------------------------------------------------------------------ what is written

    def _read_records(self, journal: IO[str]) -> List[Dict[str, Any]]:
        """What earlier runs noted, none if all is to be made anew. Raises UserError if they were to make others."""
        index = read_index(self._folder)
        records = [] if index is None else [index["settings"], *index["shards"]]
        records += _read_journal(journal, self._folder)
        options = ("version", "short_side", "quality", "shard_size", "seed")  # to pack anew changes none of them
        for before in (record for record in records if "version" in record):
            for key, value in self._settings.items():
                if before.get(key) != value and (key in options or not self._anew):
                    raise UserError(_explain_difference(self._folder, key, before.get(key), value))
        return [] if self._anew else records

    def _forget(self, journal: IO[str]) -> None:
        """Takes away what tells of earlier shards, and those that will not be: until all are made, it is no whole."""
        journal.truncate(0)
        for name in (INDEX, TABLE):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
        for path in list(self._folder.iterdir()) if self._anew else ():
            if re.fullmatch(self._name + r"-\d{5,}\.tar", path.name) and path.name not in self._plan:
                path.unlink()

    def _write_index(self, shards: Sequence[Shard], workers: int) -> None:
        table = self._table(shards, workers)
        classes = "".join(_one_line(name) + "\n" for name in self._source.classes)
        _write_whole(self._folder / CLASS_FILES[0], classes.encode("utf-8", "backslashreplace"))
        file = io.BytesIO()
        save_arrays(file, dict(table, sha256=np.array([shard.sha256 for shard in shards])))
        _write_whole(self._folder / TABLE, file.getvalue())
        skipped = [path for shard in shards for path in shard.skipped]
        index = {
            "format": "webdataset: KEY.jpg (or another suffix) and KEY.cls",
            "settings": self._settings,
            "classes": list(self._source.classes),
            "samples": sum(shard.samples for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "num_skipped": len(skipped),
            "skipped": skipped,
            "shards": [asdict(shard) for shard in shards],
        }
        _write_whole(self._folder / INDEX, json.dumps(index, indent=1).encode("utf-8"))

    def _table(self, shards: Sequence[Shard], workers: int) -> Dict[str, "np.ndarray"]:
        """Where each image lies, in the order of the folder, by what is in the shards."""
        parts = []
        with processes(workers, remedy=_FEWER) as pool:
            found = pool.in_order(scan_with_keys, [(str(self._folder / shard.name),) for shard in shards])
        for number, (rows, keys) in enumerate(found):
            parts.append(np.column_stack([keys, np.full(len(rows), number), rows]))
        table = np.concatenate(parts)
        table = table[np.argsort(table[:, 0])]
        assert np.array_equal(table[:, 4], self._source.labels[table[:, 0]])
        return {
            "shard": table[:, 1].astype(np.int32),
            "offset": table[:, 2],
            "size": table[:, 3],
            "label": table[:, 4].astype(np.int32),
        }

    def _remove_temporaries(self) -> None:
        for path in self._folder.glob(TEMPORARY + "*"):
            path.unlink()


def _lock(journal: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError("another process is packing into {}: wait for it, or stop it".format(folder)) from None


def _append(journal: IO[str], record: Dict[str, Any]) -> None:
    journal.write(json.dumps(record) + "\n")
    journal.flush()
    os.fsync(journal.fileno())


def _read_journal(journal: IO[str], folder: Path) -> List[Dict[str, Any]]:
    """What was noted; a line that was not written to its end is taken away. Raises DataError if it is damaged."""
    journal.seek(0)
    try:
        text = journal.read()
        whole = text[: text.rfind("\n") + 1]
        records = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(record, dict) and ("name" in record or "shards" in record) for record in records):
            raise ValueError
    except ValueError:  # JSON's and Unicode's are of this kind
        raise DataError(
            "{} is damaged: remove {}, and run vit-ipu pack again".format(folder / JOURNAL, folder)
        ) from None
    journal.truncate(len(whole.encode("utf-8")))
    return records


def _explain_difference(folder: Path, key: str, before: Any, value: Any) -> str:
    if key.startswith(("images", "labels")):
        found = "{} images, not {}".format(before, value) if key == "images" else "other names of images or classes"
        return "{} was packed with {}: give another TARGET, or --rescan to pack anew".format(folder, found)
    return "{} was packed with {} {}, not {}: pack with the same options, or give another TARGET".format(
        folder, key, before, value
    )


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file at once or not at all."""
    temporary = path.with_name(TEMPORARY + path.name)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(str(temporary), str(path))


def _one_line(name: str) -> str:
    return " ".join(name.split())

"""Packs a folder of images into tar shards that any number of hosts read quickly.

TARGET/train and TARGET/val (TARGET/train alone, for images that are not divided) each get shards in webdataset's layout
(KEY.jpg and KEY.cls; the class names are in classes.txt), index.json for people and for --verify, and index.npz with
the position of each image. The images are shuffled by a fixed seed, so that a program that streams the shards sees all
classes; index.npz lists the images in the order of the folder, so that a run from the shards takes the same images in
the same order as a run from the folder.

The number of images alone decides in advance which images a shard gets, so that shards are written in parallel and are
the same for any number of processes. A shard gets its name by a rename once it is complete and on the disk, and is then
recorded in a journal; a killed run resumes after the last recorded shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Dict, Generator, Iterator, List, Sequence, Set, Tuple

import numpy as np

from vit_ipu.config_sections.colors import color_value
from vit_ipu.data.packing.jobs import (
    FEWER_WORKERS,
    MEASURED,
    TAR_OVERHEAD,
    TEMPORARY,
    Counter,
    Job,
    PackOptions,
    Progress,
    Shard,
    make_shard,
    scan_with_keys,
    size_of_sample,
)
from vit_ipu.data.packing.journal import SURPLUS, append_record, lock_journal, read_journal
from vit_ipu.data.packing.splits import TRAIN, note_undivided, open_images, refuse_unusable_target
from vit_ipu.data.process_pool import processes
from vit_ipu.data.sources.dark_images import note_dark_images
from vit_ipu.data.sources.folders import FolderSource
from vit_ipu.data.sources.listing import ListingCache, save_arrays
from vit_ipu.data.sources.shard_index import (
    CLASS_FILES,
    FORMAT,
    INDEX,
    JOURNAL,
    TABLE,
    read_index,
)
from vit_ipu.data.sources.transparent_images import note_transparency
from vit_ipu.errors import DataError, PackInterrupted, UserError
from vit_ipu.files import place_problem, write_whole
from vit_ipu.text import counted, single_line

_VERSION = 1
_SEED = 0


@dataclass(frozen=True)
class PackedSplit:
    """Totals of one packed split."""

    samples: int
    bytes: int
    shards: int
    kept: int
    """Number of shards of an earlier run that were right and are kept."""
    skipped: Tuple[str, ...]


def pack(
    source: Path,
    target: Path,
    options: PackOptions,
    *,
    workers: int,
    cache: ListingCache,
    progress: Progress = lambda split, done, total: None,
) -> Dict[str, PackedSplit]:
    """Packs both splits of an image folder, or of ImageNet in its own layout; resumes an earlier, unfinished run.

    A folder with class folders directly in it has one split, the training images. Raises UserError if the images or
    the target cannot be used, and PackInterrupted on Ctrl-C.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give the folder of the images")
    problem = f"{target} is a file" if target.exists() and not target.is_dir() else place_problem(target / "train")
    if problem is not None:
        raise UserError(f"{problem}: give another TARGET")
    images = open_images(source, cache)
    refuse_unusable_target(target, source, images)
    note_undivided(source, images, cache.notify)
    for found in images.values():
        note_dark_images(found, cache.notify)
    if options.short_side is not None and options.background is None:
        note_transparency(images[TRAIN], cache.notify, remedy="--background white lays resized images on white")
    packers = [_Packer(found, target / name, name, options, tuple(images)) for name, found in images.items()]
    if cache.rescan:
        for packer in packers:
            packer.require_same_options()
        for packer in packers:
            packer.start_over()
    return {name: packer.run(workers, progress) for name, packer in zip(images, packers)}


# --------------------------------------------------------------------------------------- one split


class _Packer:
    """Packs one split."""

    def __init__(
        self, source: FolderSource, folder: Path, name: str, options: PackOptions, splits: Tuple[str, ...]
    ) -> None:
        """`splits` are the folder names of all splits that are packed together."""
        self._source, self._folder, self._name, self._options = source, folder, name, options
        self._splits = splits
        order = np.random.default_rng(_SEED).permutation(len(source))
        self._job = Job(source, order, str(folder), options, Counter())
        self._plan: Dict[str, Tuple[int, int]] = {}
        self._surplus: Set[str] = set()
        self._settings: Dict[str, Any] = {
            "version": _VERSION,
            "short_side": options.short_side,
            "quality": options.quality if options.short_side else None,
            "shard_size": options.shard_size,
            "seed": _SEED,
            "background": color_value(options.background),
            "images": len(source),
            "images_sha256": source.paths.digest(),
            "labels_sha256": hashlib.sha256(source.labels.tobytes()).hexdigest(),
        }

    def require_same_options(self) -> None:
        """Raises UserError if an earlier run had other options, because --rescan repacks with the same options."""
        with self._open_journal() as journal:
            options = ("version", "short_side", "quality", "shard_size", "seed", "background")
            self._require_same(self._read_records(journal), options)

    def start_over(self) -> None:
        """Records that no earlier shard may be kept; resumed runs follow this record until all shards are written."""
        with self._open_journal() as journal:
            records = self._read_records(journal)
            surplus = {str(record["name"]) for record in records if "name" in record}
            for record in records:
                surplus.update(record.get(SURPLUS, ()), _shard_names(self._name, record.get("shards", 0)))
            journal.truncate(0)
            append_record(journal, {**self._settings, SURPLUS: sorted(surplus)})
            for name in (INDEX, TABLE):
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / name).unlink()

    def run(self, workers: int, progress: Progress) -> PackedSplit:
        """Writes the missing shards, and then the index."""
        with self._open_journal() as journal:
            self._remove_temporaries()
            try:
                return self._run(journal, workers, progress)
            finally:
                self._remove_temporaries()

    @contextlib.contextmanager
    def _open_journal(self) -> Iterator[IO[str]]:
        """Opens and locks the journal. Raises UserError if another process has the lock."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if (self._folder / JOURNAL).exists() and not (self._folder / JOURNAL).is_file():
                raise DataError(f"{self._folder / JOURNAL} is not a regular file: give another TARGET")
            with (self._folder / JOURNAL).open("a+", encoding="utf-8") as journal:
                lock_journal(journal, self._folder)
                yield journal
        except OSError as error:
            error.filename = error.filename or str(self._folder)  # for example if the disk is full
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
                        append_record(journal, asdict(shard))
        except KeyboardInterrupt:
            of_all = f"of {len(self._plan)} " if self._plan else ""
            raise PackInterrupted(f"{len(finished)} {of_all}shards of {self._name} are done") from None
        shards = [finished[name] for name in self._plan]
        if not any(shard.samples for shard in shards):
            raise DataError(
                f"none of the {counted(len(self._source), 'image')} of {self._name} can be read: replace them"
            )
        for name in filter(self._is_shard, self._surplus - set(self._plan)):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()
        self._write_index(shards, workers)
        os.unlink(str(self._folder / JOURNAL))
        skipped = tuple(path for shard in shards for path in shard.skipped)
        samples, size = sum(shard.samples for shard in shards), sum(shard.bytes for shard in shards)
        return PackedSplit(samples, size, len(shards), kept, skipped)

    # ---------------------------------------------------------------------------------- the shards

    def _begin(self, journal: IO[str], workers: int, progress: Progress) -> Dict[str, Shard]:
        """Assigns images to shards, as an earlier run did if there is one; returns the earlier run's shards by name."""
        records = self._read_records(journal)
        self._require_same(records, tuple(self._settings))
        settled = [record["shards"] for record in records if "shards" in record]
        num_shards = settled[0] if settled else self._choose_num_shards(workers, progress)
        bounds = np.linspace(0, len(self._source), num_shards + 1).astype(np.int64).tolist()
        self._plan = dict(zip(_shard_names(self._name, num_shards), zip(bounds, bounds[1:])))
        self._surplus = {name for record in records for name in record.get(SURPLUS, ())}
        self._settings["shards"] = num_shards
        append_record(journal, self._settings)
        fields = Shard.__dataclass_fields__
        noted = [Shard(**{key: record[key] for key in fields}) for record in records if set(fields) <= set(record)]
        return {shard.name: shard for shard in noted if self._options.skip_bad or not shard.skipped}

    def _choose_num_shards(self, workers: int, progress: Progress) -> int:
        """Chooses the number of shards from the sizes of some samples: file sizes unless images are resized."""
        places, sizes = list(range(min(MEASURED, len(self._source)))), []
        with processes(workers, shared=self._job, remedy=FEWER_WORKERS) as pool:
            for _, size in pool.finished(size_of_sample, [(place,) for place in places]):
                sizes.append(size)
                if self._options.short_side is not None:
                    progress("measure " + self._name, len(sizes), len(places))
        mean = sum(sizes) / max(1, sum(size > 0 for size in sizes)) + TAR_OVERHEAD
        return max(1, min(len(self._source), round(mean * len(self._source) / self._options.shard_size)))

    def _make(
        self, noted: Dict[str, Shard], workers: int, progress: Progress
    ) -> Generator[Tuple[Shard, bool], None, None]:
        """Yields each shard when it is finished, and whether an earlier run wrote it."""
        total, counter = len(self._source), self._job.counter
        tasks = [(name, first, last, noted.get(name)) for name, (first, last) in self._plan.items()]
        with processes(workers, shared=self._job, remedy=FEWER_WORKERS) as pool:
            try:
                for _, made in pool.finished(make_shard, tasks, lambda: progress(self._name, counter.done, total)):
                    yield made
            finally:
                counter.stop()

    # ------------------------------------------------------------------------------ what is written

    def _read_records(self, journal: IO[str]) -> List[Dict[str, Any]]:
        """Returns the records of earlier runs: the index's, unless the journal starts over, and the journal's."""
        noted = read_journal(journal, self._folder)
        index = None if any(SURPLUS in record for record in noted) else read_index(self._folder)
        return noted if index is None else [index["settings"], *index["shards"], *noted]

    def _require_same(self, records: Sequence[Dict[str, Any]], keys: Sequence[str]) -> None:
        """Raises UserError if an earlier run had other settings."""
        for before in (record for record in records if "version" in record):
            for key in keys:
                if before.get(key) != self._settings[key]:
                    raise UserError(_explain_difference(self._folder, key, before.get(key), self._settings[key]))

    def _write_index(self, shards: Sequence[Shard], workers: int) -> None:
        table = self._table(shards, workers)
        classes = "".join(single_line(name) + "\n" for name in self._source.classes)
        write_whole(self._folder / CLASS_FILES[0], classes.encode("utf-8", "backslashreplace"), prefix=TEMPORARY)
        file = io.BytesIO()
        save_arrays(file, dict(table, sha256=np.array([shard.sha256 for shard in shards])))
        write_whole(self._folder / TABLE, file.getvalue(), prefix=TEMPORARY)
        skipped = [path for shard in shards for path in shard.skipped]
        index = {
            "format": FORMAT + " (or another suffix) and KEY.cls",
            "splits": list(self._splits),
            "settings": self._settings,
            "classes": list(self._source.classes),
            "samples": sum(shard.samples for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "num_skipped": len(skipped),
            "skipped": skipped,
            "shards": [asdict(shard) for shard in shards],
        }
        write_whole(self._folder / INDEX, json.dumps(index, indent=1).encode("utf-8"), prefix=TEMPORARY)

    def _table(self, shards: Sequence[Shard], workers: int) -> Dict[str, np.ndarray]:
        """Reads the position of each image from the shards; returns the positions in the order of the folder."""
        parts = []
        with processes(workers, remedy=FEWER_WORKERS) as pool:
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
            name = path.name[len(TEMPORARY) :]
            if name in (INDEX, TABLE, CLASS_FILES[0]) or self._is_shard(name):
                path.unlink()

    def _is_shard(self, name: str) -> bool:
        return re.fullmatch(self._name + r"-\d{5,}\.tar", name) is not None


def _shard_names(split: str, num_shards: int) -> List[str]:
    digits = max(5, len(str(num_shards - 1)))
    return [f"{split}-{number:0{digits}d}.tar" for number in range(num_shards)]


def _explain_difference(folder: Path, key: str, before: Any, value: Any) -> str:
    if key.startswith(("images", "labels")):
        found = f"{counted(before, 'image')}, not {value}" if key == "images" else "other image or class names"
        return f"{folder} was packed with {found}: give another TARGET, or --rescan to repack everything"
    return f"{folder} was packed with {key} {before}, not {value}: pack with the same options, or give another TARGET"

"""Tar shards in webdataset's layout, read in any order."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import data_config, tiny_config
from shard_files import LABELS, open_split, png, samples, shades, write_shards, write_tar

from vit_ipu.config import ModelConfig
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources import shards as reading
from vit_ipu.data.sources.registry import open_source
from vit_ipu.data.sources.shards import expand_braces
from vit_ipu.data.sources.tar_headers import scan_shards
from vit_ipu.errors import DataError
from vit_ipu.pipeline import BatchPlan


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_image_and_label_is_read_in_any_order(tmp_path, format):
    write_shards(tmp_path, format)
    source = open_split(tmp_path)
    assert source.labels.tolist() == LABELS
    assert (source.labels.dtype, source.classes) == (np.int64, ("class 0", "class 1", "class 2"))
    order = [5, 0, 6, 3, 1, 1, 4, 2]
    assert shades(source, order) == order
    assert source.picture(3).size == (9, 7)
    assert open_split(tmp_path, "eval").labels.tolist() == [1, 2]


def test_unix_version_7_tars_and_sizes_with_spaces_are_read(tmp_path):
    """Headers without "ustar" (Unix version 7), and sizes that end by a space, as POSIX allows."""
    write_shards(tmp_path)
    for shard in tmp_path.glob("*/*.tar"):
        data = bytearray(shard.read_bytes())
        with tarfile.open(str(shard)) as tar:
            starts = [member.offset for member in tar]
        for start in starts:
            header = data[start : start + 512]
            header[257:265] = bytes(8)
            header[135] = ord(" ")
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            data[start : start + 512] = header
        shard.write_bytes(data)
    source = open_split(tmp_path)
    assert source.labels.tolist() == LABELS
    assert shades(source) == list(range(len(LABELS)))


def test_long_and_odd_names_and_json_labels_are_read_and_other_members_ignored(tmp_path):
    long = "ordner/" + "ä" * 120
    members = [
        (long + ".JPEG", png(10, "JPEG")),
        (long + ".json", json.dumps({"label": 2, "width": 9}).encode()),
        (long + ".txt", b"a text"),
        ("._a.jpg", b"of another system"),
        ("b c.webp", png(20, "WEBP")),
        ("b c.seg.png", b"no image of ours"),
        ("b c.cls", b" 1\n"),
    ]
    for split in ("train", "val"):
        write_tar(tmp_path / split / "a.tar", members, tarfile.PAX_FORMAT)
    source = open_split(tmp_path)
    assert source.labels.tolist() == [2, 1]
    assert [abs(shade - 10 * (n + 1)) < 3 for n, shade in enumerate(shades(source))] == [True, True]


def test_names_of_classes_are_read_from_a_file_beside_the_shards(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncow\n")
    assert open_split(tmp_path).classes == ("ant", "bee", "cow")
    (tmp_path / "val" / "classes.txt").write_text("ant\nbee\ncat\n")
    with pytest.raises(DataError, match=r"different classes: cat \(and 1 more\)"):
        open_split(tmp_path, "eval")
    (tmp_path / "train" / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot read .*train/classes.txt"):
        open_split(tmp_path)


def test_patterns_with_braces_select_shards(tmp_path):
    write_shards(tmp_path)
    places = {"path": tmp_path / "train" / "x-{00..02}.tar", "eval_path": str(tmp_path / "val" / "x-{00,00}.tar")}
    assert open_split(**places).labels.tolist() == LABELS
    assert open_split(split="eval", **places).labels.tolist() == [1, 2, 1, 2]
    folders = {"path": tmp_path / "train", "eval_path": str(tmp_path / "val")}
    assert open_split(**folders).labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{10..11}", ["10", "11"]),
        ("{a,bc,}-{1..2}", ["a-1", "a-2", "bc-1", "bc-2", "-1", "-2"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{02..00}", ["02", "01", "00"]),
        ("{x}{}{1..}", ["{x}{}{1..}"]),
    ],
)
def test_braces_are_expanded(pattern, expected):
    assert expand_braces(pattern) == expected


def test_headers_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards(tmp_path)
    for path in tmp_path.rglob("*.tar"):
        os.utime(str(path), (1, 1))
    assert open_split(tmp_path).labels.tolist() == LABELS
    monkeypatch.setattr(reading, "scan_shards", lambda shards: pytest.fail("read again"))
    assert shades(open_split(tmp_path)) == list(range(7))
    monkeypatch.setattr(reading, "scan_shards", scan_shards)
    write_tar(tmp_path / "train" / "x-01.tar", samples([2, 2, 2]))
    assert len(open_split(tmp_path)) == 9


def test_a_source_can_be_read_by_threads_and_other_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_OPEN", 1)
    write_shards(tmp_path)
    source = open_split(tmp_path)
    order = list(range(7)) * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: source.image(index).getpixel((0, 0))[0], order)) == order
    assert shades(pickle.loads(pickle.dumps(source))) == list(range(7))


def test_a_run_from_shards_resumes_and_splits_like_any_other(tmp_path):
    """Checks that steps, instances and workers load the stream's images, whichever shards contain these images."""
    write_shards(tmp_path)

    def steps(start=0, share=(0, 1), workers=0):
        pipeline = {"global_batch_size": 4, "micro_batch_size": 1, "layers_per_ipu": [4], "replication_factor": 2}
        data = {"source": "shards", "path": str(tmp_path), "num_train": None, "num_workers": workers}
        config = tiny_config(data=data, pipeline=pipeline, model={"num_classes": 3})
        source = open_source(config.data, config.model, "train")
        positions = BatchPlan.of(config).share(*share)
        loader = TrainingLoader(source, config, positions, start_step=start, total_steps=5)
        return [(int(image[0, 0, 0]), int(label)) for step in loader for image, label in zip(step.images, step.labels)]

    whole = steps()
    assert all(LABELS[shade] == label for shade, label in whole)
    assert sorted(shade for shade, _ in whole[:7]) == list(range(7))
    assert steps(start=3) == whole[12:]
    assert steps(workers=2) == whole
    assert sorted(steps(share=(0, 2)) + steps(share=(1, 2))) == sorted(whole)


def damage_archive(change):
    def make(root):
        write_shards(root)
        path = root / "train" / "x-02.tar"
        path.write_bytes(change(path.read_bytes()))

    return make


def one_shard(*members):
    def make(root):
        write_shards(root)
        write_tar(root / "train" / "x-01.tar", list(members))

    return make


MISTAKES = {
    "no folder": (lambda root: None, "no folder train in"),
    "no shards": (lambda root: (root / "train").mkdir(), "no shards in .*train: expected .*/train/\\*.tar"),
    "compressed": (damage_archive(gzip.compress), r"x-02.tar is compressed \(gzip\): .*unpack it"),
    "not a tar": (damage_archive(lambda b: b"x" * 2000), "x-02.tar is not a tar, or is cut off"),
    "empty file": (damage_archive(lambda b: b""), "x-02.tar is not a tar, or is cut off"),
    "cut off in an image": (damage_archive(lambda b: b[: 2 * 2048 + 600]), "x-02.tar is .*cut off"),
    "cut off in a header": (damage_archive(lambda b: b[: 2 * 1024 + 100]), "x-02.tar is cut off or damaged at byte"),
    "cut off between members": (damage_archive(lambda b: b[: 2 * 2048]), "x-02.tar is cut off or damaged at byte 4096"),
    "damaged header": (
        damage_archive(lambda b: b[:2048] + b"\xff" * 512 + b[2560:]),
        "x-02.tar is cut off or damaged at byte 2048",
    ),
    "empty tar": (
        lambda root: (write_tar(root / "train" / "a.tar", []), write_tar(root / "val" / "a.tar", [])),
        "no images in .*a.tar",
    ),
    "no label": (one_shard(("a.png", png(1))), "sample a has no label: expected a number in a.cls"),
    "label that is not a number": (one_shard(("a.png", png(1)), ("a.cls", b"cat")), "sample a has no label"),
    "negative label": (one_shard(("a.png", png(1)), ("a.cls", b"-1")), "sample a has no label"),
    "json without a label": (one_shard(("a.png", png(1)), ("a.json", b'{"x": 1}')), "sample a has no label"),
    "damaged json": (one_shard(("a.png", png(1)), ("a.json", b"[")), "sample a has no label"),
    "no image": (one_shard(("a.cls", b"1"), ("a.txt", b"")), "sample a has the members a.cls, a.txt: expected one"),
    "two images": (one_shard(("a.png", png(1)), ("a.jpg", png(1)), ("a.cls", b"1")), "a.png, a.jpg, a.cls: expected"),
    "the same twice": (one_shard(("a.png", png(1)), ("a.png", png(1)), ("a.cls", b"1")), "a.png, a.png, a.cls"),
    "label too high": (one_shard(("a.png", png(1)), ("a.cls", b"3")), "label 3, but there are 3 classes"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_shards_that_cannot_be_used_are_refused(tmp_path, name):
    make, message = MISTAKES[name]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_split(tmp_path)


def test_a_shard_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read .*nowhere.tar: No such file"):
        scan_shards([str(tmp_path / "nowhere.tar")])


def test_a_folder_named_like_a_shard_is_left_out(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "train" / "y.tar").mkdir()
    assert open_split(tmp_path).labels.tolist() == LABELS


def test_patterns_that_select_nothing_are_refused(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"is not a folder with train/ and val/: .*data.eval_path"):
        open_split(tmp_path / "train" / "x-{00..02}.tar")
    with pytest.raises(DataError, match=r"no shard at .*x-03.tar \(missing: 2 of 5\)"):
        open_split(tmp_path / "train" / "x-{00..04}.tar", eval_path=str(tmp_path / "val"))
    with pytest.raises(DataError, match=r"no shard at .*y-\*.tar$"):
        open_split(tmp_path / "train" / "y-*.tar", eval_path=str(tmp_path / "val"))
    with pytest.raises(DataError, match="needs data.path"):
        open_source(data_config(source="shards"), ModelConfig(variant="vit_test", image_size=28), "train")


def test_a_shard_that_changes_or_vanishes_while_it_is_used_is_named(tmp_path):
    write_shards(tmp_path)
    source = open_split(tmp_path)
    write_tar(tmp_path / "train" / "x-00.tar", [("a.cls", b"1"), *samples(LABELS[:3])])
    with pytest.raises(DataError, match=r"x-00.tar does not match its index \(no image at byte 512\)"):
        source.image(0)
    path = tmp_path / "train" / "x-02.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="x-02.tar does not match its index"):
        source.image(6)
    (tmp_path / "train" / "x-01.tar").unlink()
    with pytest.raises(DataError, match="no shard at .*x-01.tar"):
        source.image(3)
    (tmp_path / "train" / "x-01.tar").mkdir()
    with pytest.raises(DataError, match="cannot read .*x-01.tar: Is a directory"):
        source.image(3)


def test_a_damaged_image_is_named_with_its_shard(tmp_path):
    one_shard(("a.png", b"no image"), ("a.cls", b"1"))(tmp_path)
    source = open_split(tmp_path)
    with pytest.raises(DataError, match="cannot read the image .*x-01.tar/a.png: "):
        source.image(3)

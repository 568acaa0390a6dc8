"""Shards that other programs wrote: other files beside the shards, and irregular samples."""

from __future__ import annotations

import itertools
import random
import tarfile

import pytest
from helpers import data_config
from shard_files import LABELS, open_split, png, samples, write_shards, write_tar

from vit_ipu.config import ModelConfig
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shards import open_shards
from vit_ipu.data.sources.tar_headers import scan_shard
from vit_ipu.errors import DataError


def open_with_notes(root, split="train", **data):
    notes = []
    config = data_config(source="shards", path=str(root), **data)
    return open_shards(config.path, config, 3, split, ListingCache(notify=notes.append)), notes


def test_held_out_shards_have_the_names_of_the_training_shards(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "train" / "classes.txt").write_text("ant\nbee\ncow\n")
    assert open_split(tmp_path, "eval").classes == ("ant", "bee", "cow")
    (tmp_path / "val" / "classes.txt").write_text("ant\nbee\ndog\n")
    with pytest.raises(DataError, match=r"val and its train folder have different classes: cow \(and 1 more\)"):
        open_split(tmp_path, "eval")


@pytest.mark.parametrize("text", ["ant\nbee\ncow", "ant\nbee\ncow\n\n \n", "\ufeffant\r\nbee\r\ncow\r\n"])
def test_blank_last_lines_and_the_marks_of_windows_are_not_names(tmp_path, text):
    write_shards(tmp_path)
    (tmp_path / "classes.txt").write_bytes(text.encode("utf-8"))
    assert open_split(tmp_path).classes == ("ant", "bee", "cow")


def test_samples_without_a_label_or_an_image_follow_on_error(tmp_path):
    write_shards(tmp_path)
    write_tar(tmp_path / "train" / "x-01.tar", [("a.png", png(1)), ("README.md", b"hello"), *samples([2], start=3)])
    with pytest.raises(DataError, match="x-01.tar: sample a has no label"):
        open_with_notes(tmp_path)
    source, notes = open_with_notes(tmp_path, on_error="skip")
    assert source.labels.tolist() == [*LABELS[:3], 2, *LABELS[4:]]
    expected = "note: left out 2 samples: {}/train/x-01.tar: sample a has no label: expected a number in a.cls or"
    assert len(notes) == 1
    assert notes[0].startswith(expected.format(tmp_path))


def test_the_error_for_a_strange_sample_is_short(tmp_path):
    write_shards(tmp_path)
    write_tar(tmp_path / "train" / "x-01.tar", [(f"IMG.{number:04d}.jpg", b"") for number in range(1000)])
    with pytest.raises(DataError, match=r"members IMG.0000.jpg, .*, IMG.0003.jpg, 996 more: .*first dot") as raised:
        open_with_notes(tmp_path)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_compressed_shards_beside_others_are_left_out_with_a_note(tmp_path):
    write_shards(tmp_path)
    for name in ("y.tar.gz", "z.tgz"):
        (tmp_path / "train" / name).write_bytes(b"")
    _, notes = open_with_notes(tmp_path)
    assert notes == [f"note: left out the compressed shard {tmp_path}/train/y.tar.gz (and 1 more)"]
    for path in (tmp_path / "train").glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"no shards in .*: expected .*/\*.tar, not compressed"):
        open_with_notes(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("a.cls", b"1", 1),
        ("a.cls", b" 1 ", 1),
        ("a.cls", b"1\r\n", 1),
        ("a.cls", b"0001", 1),
        ("a.cls", b"\xef\xbb\xbf1\r\n", 1),  # the mark of Windows' editors
        ("a.json", b'\xef\xbb\xbf{"label": 1}', 1),
        ("a.cls", b"0", 0),
        ("a.json", b'{"label": 1}', 1),
        ("a.json", b'{"label": 1.0}', 1),  # JSON has one kind of number; pandas writes whole numbers so
        ("a.json", b'{"label": 2e0}', 2),
    ],
)
def test_numbers_are_labels(tmp_path, name, text, label):
    write_shards(tmp_path)
    write_tar(tmp_path / "train" / "x-01.tar", [("a.png", png(1)), (name, text)])
    assert open_split(tmp_path).labels[3] == label


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.cls", b"1_0", "a.cls holds '1_0'"),
        ("a.cls", b"+1", r"a.cls holds '\+1'"),
        ("a.cls", b"-0", "a.cls holds '-0'"),
        ("a.cls", "\uff17".encode(), "a.cls holds '\uff17'"),
        ("a.cls", "\u0661".encode(), "a.cls holds '\u0661'"),
        ("a.cls", b"1.0", "a.cls holds '1.0'"),
        ("a.cls", b"1 2", "a.cls holds '1 2'"),
        ("a.cls", b"", "a.cls holds ''"),
        ("a.cls", b"\xff1", "a.cls holds '\ufffd1'"),
        ("a.cls", b"2147483648", "a.cls holds '2147483648'"),
        ("a.cls", b"x" * 99, r"a.cls holds 'x{40}\.\.\.'"),
        ("a.json", b'{"label": true}', "`label` in a.json is 'true'"),
        ("a.json", b'{"label": 1.5}', "`label` in a.json is '1.5'"),
        ("a.json", b'{"label": "1"}', "`label` in a.json is '\"1\"'"),
        ("a.json", b'{"label": null}', "`label` in a.json is 'null'"),
        ("a.json", b'{"label": -1}', "`label` in a.json is '-1'"),
        ("a.json", b'{"label": NaN}', "`label` in a.json is 'NaN'"),
        ("a.json", b'{"label": 1e999}', "`label` in a.json is 'Infinity'"),
        ("a.json", b"[" * 100000, "a.json is not a JSON object with a `label`"),
        ("a.json", b"[1]", "a.json is not a JSON object with a `label`"),
    ],
)
def test_other_texts_are_not_labels_and_are_shown(tmp_path, name, text, found):
    write_shards(tmp_path)
    write_tar(tmp_path / "train" / "x-01.tar", [("a.png", png(1)), (name, text)])
    expected = f"x-01.tar: sample a has no label: {found}; expected a whole number from 0, such as 7$"
    with pytest.raises(DataError, match=expected) as raised:
        open_split(tmp_path)
    assert "\n" not in str(raised.value)


METADATA, LABELLED = b'{"width": 9}', b'{"label": 2}'


def scan(tmp_path, members):
    """Returns the labels in the order of the images' shades, the number of invalid samples, and the first's message."""
    path = tmp_path / "x.tar"
    write_tar(path, members)
    content, found = path.read_bytes(), scan_shard(str(path))
    labels = {content[offset : offset + size]: label for offset, size, label in found.rows.tolist()}
    assert len(labels) == len(found.rows)
    return [labels[png(shade)] for shade in range(10) if png(shade) in labels], found.num_invalid, found.example


@pytest.mark.parametrize("order", list(itertools.permutations(["png", "json", "cls"])))
def test_metadata_without_a_label_does_not_end_a_sample(tmp_path, order):
    """Covers `tar` of KEY.png, KEY.json and KEY.cls in the order of a file system: by suffix, by key, and shuffled."""
    content = {"png": png, "json": lambda key: METADATA, "cls": lambda key: str(key % 3).encode()}
    by_suffix = [(f"{key}.{suffix}", content[suffix](key)) for suffix in order for key in range(10)]
    shuffled = random.Random(str(order)).sample(by_suffix, len(by_suffix))
    for members in (by_suffix, sorted(by_suffix, key=lambda member: member[0][0]), shuffled):
        assert scan(tmp_path, members) == ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 0, "")


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        (["0.json", "1.png", "1.cls", "0.png", "0.cls"], [1, 1]),  # the label in KEY.cls is the one that counts
        (["0.png", "1.json", "0.json", "1.png"], [2, 2]),
        (["0.png", "0.json", "1.png", "1.json"], [2, 2]),
    ],
)
def test_a_label_in_json_may_be_apart_from_its_image(tmp_path, members, labels):
    content = {"cls": b"1", "json": LABELLED}
    files = [(name, content.get(name[2:]) or png(int(name[0]))) for name in members]
    assert scan(tmp_path, files) == (labels, 0, "")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("0.png", png(0)), ("0.json", METADATA)],
            "sample 0 has no label: 0.json is not a JSON object with a `label`",
        ),
        ([("0.png", png(0)), ("0.json", b"{")], "sample 0 has no label: 0.json is not a JSON object with a `label`"),
        (
            [("0.png", png(0)), ("0.json", LABELLED), ("1.png", png(1)), ("1.cls", b"1"), ("0.cls", b"1")],
            "sample 0 has the members 0.cls: expected one image",
        ),
        (
            [("0.png", png(0)), ("0.json", LABELLED), ("1.png", png(1)), ("1.cls", b"1"), ("0.json", LABELLED)],
            "sample 0 has the members 0.json: expected one image",
        ),
    ],
)
def test_a_missing_label_and_a_second_one_are_named(tmp_path, members, message):
    _, num_invalid, example = scan(tmp_path, members)
    assert (num_invalid, message in example) == (1, True)


@pytest.mark.parametrize("rest", [b"\n", b"\r\n", b"\0\n", bytes(1 << 20) + b"\n"])
def test_a_line_end_after_a_tar_is_not_a_cut_off_tar(tmp_path, rest):
    write_shards(tmp_path)
    path = tmp_path / "train" / "x-01.tar"
    content = path.read_bytes()
    path.write_bytes(content + rest)
    assert open_split(tmp_path).labels.tolist() == LABELS
    path.write_bytes(content + rest + content[:100])
    with pytest.raises(DataError, match="x-01.tar is cut off or damaged at byte"):
        open_split(tmp_path)


def test_a_label_file_that_is_large_is_not_read(tmp_path):
    write_shards(tmp_path)
    write_tar(tmp_path / "train" / "x-01.tar", [("a.png", png(1)), ("a.cls", b"0" * 1048577)])
    with pytest.raises(DataError, match="sample a has no label: a.cls has 1,048,577 bytes; expected a number$"):
        open_split(tmp_path)


def test_files_of_operating_systems_are_not_samples(tmp_path):
    write_shards(tmp_path)
    others = ["Thumbs.db", "c/desktop.ini", "._0000.png", "__MACOSX/c/._0000.png", "c/@eaDir/0000.png/SMALL.jpg"]
    members = [(name, b"of a system") for name in others]
    write_tar(tmp_path / "train" / "x-01.tar", [*members, *samples([2], start=3)])
    assert open_split(tmp_path).labels.tolist() == [*LABELS[:3], 2, *LABELS[4:]]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_images_and_labels_that_are_links_are_refused(tmp_path, kind):
    """Covers `tar` of a folder of links: such members have no bytes, and would be left out."""
    write_shards(tmp_path)
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = kind, "../b.png"
    path = tmp_path / "train" / "x-01.tar"
    path.write_bytes(member.tobuf() + path.read_bytes())
    with pytest.raises(DataError, match="x-01.tar: a.png is stored as a link to ../b.png: pack with tar --dereference"):
        open_split(tmp_path)


def test_suffixes_of_shards_may_be_upper_case(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "train" / "x-02.tar").rename(tmp_path / "train" / "x-02.TAR")
    (tmp_path / "train" / "x-03.TAR.GZ").write_bytes(b"")
    source, notes = open_with_notes(tmp_path)
    assert source.labels.tolist() == LABELS
    assert notes == [f"note: left out the compressed shard {tmp_path}/train/x-03.TAR.GZ"]


def test_members_with_holes_are_refused(tmp_path):
    write_shards(tmp_path)
    member = tarfile.TarInfo("a.png")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    path = tmp_path / "train" / "x-01.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(512) + path.read_bytes())
    with pytest.raises(DataError, match="x-01.tar: a.png is stored with holes: pack without --sparse"):
        open_with_notes(tmp_path)


def test_a_shard_that_changed_is_listed_again_with_rescan(tmp_path):
    write_shards(tmp_path)
    source, _ = open_with_notes(tmp_path)
    write_tar(tmp_path / "train" / "x-00.tar", [("a.cls", b"1"), *samples(LABELS[:3])])
    with pytest.raises(DataError, match="copy it again, or list the shards again with --rescan$"):
        source.image(0)
    config = data_config(source="shards", path=str(tmp_path), on_error="skip")
    source = open_shards(config.path, config, 3, "train", ListingCache(rescan=True))
    assert source.image(0).getpixel((0, 0)) == (0, 0, 0)


def test_the_number_of_classes_is_the_models_without_a_list(tmp_path):
    write_shards(tmp_path)
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=3)
    assert open_split(tmp_path, num_classes=model.num_classes).classes == ("class 0", "class 1", "class 2")


def test_names_of_classes_come_from_packs_index_also_with_a_pattern(tmp_path):
    """Covers a folder name with two blanks, which classes.txt shows as one."""
    for split in ("train", "val"):
        for name in ("ant", "big  bee"):
            write_png(tmp_path / "images" / split / name / "0.png")
    options = PackOptions(shard_size=1_000_000)
    pack(tmp_path / "images", tmp_path / "t", options, workers=1, cache=ListingCache())
    source = open_split(tmp_path / "t" / "train" / "*.tar", "eval", 2, eval_path=str(tmp_path / "t" / "val" / "*.tar"))
    assert source.classes == ("ant", "big  bee")


def write_png(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(png(1))

"""Packing a folder of images as shards, and reading the shards: order, sizes, bad images, background, command line."""

from __future__ import annotations

import hashlib
import io
import json
import os

import numpy as np
import pytest
from helpers import vit_ipu, write_config, write_image_folder
from odd_images import contents, open_split, run_pack, write_images
from PIL import Image

from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shard_index import INDEX, TABLE
from vit_ipu.errors import DataError, UserError


def stored(source, index):
    """Returns the bytes of an image in its shard."""
    shard = source._shards._paths[int(source._shard[index])]
    with open(shard, "rb") as file:
        return os.pread(file.fileno(), int(source._size[index]), int(source._offset[index]))


def test_every_image_and_label_is_packed_in_the_order_of_the_folder(tmp_path):
    root, target = write_images(tmp_path / "images"), tmp_path / "shards"
    packed = run_pack(root, target)
    assert (packed["train"].samples, packed["val"].samples) == (25, 24)
    assert packed["train"].shards >= 2
    for split in ("train", "eval"):
        files, shards = open_split("imagefolder", root, split), open_split("shards", target, split)
        assert shards.classes == files.classes == ("cat", "dog.v2")
        assert shards.labels.tolist() == files.labels.tolist()
        assert len(set(shards._shard[:12].tolist())) > 1  # a shard is not a class
        for index in range(len(files)):
            with open(os.fsencode(files.paths[index]), "rb") as file:
                assert stored(shards, index) == file.read()
            assert np.array_equal(np.asarray(shards.image(index)), np.asarray(files.image(index)))
    assert (target / "val" / "classes.txt").read_text() == "cat\ndog.v2\n"


def test_the_index_records_samples_classes_settings_and_checksums(tmp_path):
    run_pack(write_images(tmp_path / "images"), tmp_path / "shards")
    folder = tmp_path / "shards" / "train"
    index = json.loads((folder / INDEX).read_text())
    assert (index["samples"], index["num_skipped"], index["classes"]) == (25, 0, ["cat", "dog.v2"])
    assert index["settings"]["short_side"] is None
    for shard in index["shards"]:
        data = (folder / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert sum(shard["samples"] for shard in index["shards"]) == 25
    names = {*(shard["name"] for shard in index["shards"]), INDEX, TABLE, "classes.txt"}
    assert {path.name for path in folder.iterdir()} == names


def test_shards_can_be_read_without_our_index(tmp_path):
    """Checks that without our index the shards still have webdataset's layout: every label is beside its image."""
    root = write_images(tmp_path / "images")
    run_pack(root, tmp_path / "shards")
    with_index = open_split("shards", tmp_path / "shards", "train")
    expected = sorted((stored(with_index, index), int(with_index.labels[index])) for index in range(25))
    for split in ("train", "val"):
        (tmp_path / "shards" / split / INDEX).unlink()
    source = open_split("shards", tmp_path / "shards", "train")
    assert sorted((stored(source, index), int(source.labels[index])) for index in range(25)) == expected
    assert source.labels.tolist() != sorted(source.labels.tolist())  # shuffled for programs that stream
    assert source.classes == ("cat", "dog.v2")


def test_only_larger_images_are_resized(tmp_path):
    root = write_images(tmp_path / "images", size=(80, 60))
    Image.new("RGB", (20, 900)).save(str(root / "train" / "cat" / "small.jpg"))
    Image.linear_gradient("L").resize((333, 100)).save(str(root / "train" / "cat" / "wide.tif"))
    run_pack(root, tmp_path / "shards", short_side=48, quality=95)
    files, shards = (
        open_split("imagefolder", root, "train"),
        open_split("shards", tmp_path / "shards", "train"),
    )
    for index in range(len(files)):
        before, after, data = files.image(index), shards.image(index), stored(shards, index)
        if min(before.size) <= 48:
            with open(os.fsencode(files.paths[index]), "rb") as file:
                assert data == file.read()
            continue
        assert min(after.size) == 48
        assert abs(after.width / after.height - before.width / before.height) < 0.03
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "JPEG"
        expected = np.asarray(before.resize(after.size, Image.Resampling.BICUBIC), np.float32)
        assert np.abs(np.asarray(after, np.float32).mean((0, 1)) - expected.mean((0, 1))).max() < 2
    assert sorted(shards.image(index).size for index in range(len(files)))[-1] == (160, 48)


def test_the_number_of_processes_changes_nothing(tmp_path):
    root = write_images(tmp_path / "images")
    for workers in (1, 3):
        run_pack(root, tmp_path / str(workers), workers, short_side=24)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_imagenets_layout_is_packed_with_its_names(tmp_path):
    for split in ("train", "val"):
        write_image_folder(tmp_path / "images", (split,), ("n00000001", "n00000002"))
    (tmp_path / "images" / "words.txt").write_text("n00000001\tcat\nn00000002\tdog\n")
    run_pack(tmp_path / "images", tmp_path / "named")
    assert open_split("shards", tmp_path / "named", "eval").classes == ("cat", "dog")


# ------------------------------------------------------------------------------------ bad images


BAD = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "not an image": lambda data: b"text",
}


@pytest.mark.parametrize("short_side", [None, 24])
@pytest.mark.parametrize("kind", list(BAD))
def test_images_that_cannot_be_read_are_refused_or_skipped(tmp_path, kind, short_side):
    root = write_images(tmp_path / "images")
    for path in (root / "train" / "cat" / "0.jpg", root / "train" / "dog.v2" / "2.jpg"):
        path.write_bytes(BAD[kind](path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot read the image .*\.jpg: .*--on-error skip"):
        run_pack(root, tmp_path / "shards", short_side=short_side)
    packed = run_pack(root, tmp_path / "shards", short_side=short_side, skip_bad=True)["train"]
    bad = [str(root / "train" / "cat" / "0.jpg"), str(root / "train" / "dog.v2" / "2.jpg")]
    index = json.loads((tmp_path / "shards" / "train" / INDEX).read_text())
    assert (packed.samples, sorted(packed.skipped), index["num_skipped"]) == (23, bad, 2)
    assert sorted(index["skipped"]) == bad
    files, shards = open_split("imagefolder", root, "train"), open_split("shards", tmp_path / "shards", "train")
    kept = [index for index in range(len(files)) if files.paths[index] not in bad]
    assert shards.labels.tolist() == files.labels[kept].tolist()
    assert [shards.image(n).size for n in range(23)] == [
        tuple(max(24, round(side * 24 / min(size))) for side in size) if short_side else size
        for size in (files.image(index).size for index in kept)
    ]
    with pytest.raises(DataError, match="cannot read the image"):
        run_pack(root, tmp_path / "shards", short_side=short_side)  # incomplete shards are not kept silently


# ------------------------------------------------------------------------------ at the command line


def test_pack_train_and_verify_at_the_command_line(run, tmp_path):
    write_images(tmp_path / "images")
    options = ["--shard-size", "20kB", "--short-side", "32", "--workers", "1"]
    packed = json.loads(run("pack", "images", "shards", *options, "--json"))
    assert (packed["target"], packed["splits"]["train"]["samples"], packed["splits"]["val"]["skipped"]) == (
        "shards",
        25,
        [],
    )
    text = run("pack", "images", "shards", *options)
    assert "shards/train: 25 images in {0} shards ({0} kept)".format(packed["splits"]["train"]["shards"]) in text
    assert "shards/val: 24 images in shards that match their checksums" in run("pack", "images", "shards", "--verify")
    assert json.loads(run("pack", "images", "shards", "--verify", "--json"))["verified"] == {"train": 25, "val": 24}
    data = {"source": "shards", "path": "shards", "num_train": None, "num_eval": None}
    write_config(tmp_path, data=data, model={"num_classes": 2})
    summary = json.loads(run("train", "tiny.yaml", "--device", "cpu", "--rescan", "--json"))
    assert summary["num_images"] == 24
    again = json.loads(
        run("evaluate", "tiny.yaml", "--checkpoint", summary["run"], "--device", "cpu", "--rescan", "--json")
    )
    assert again["top1"] == summary["top1"]
    assert json.loads(
        run("benchmark", "tiny.yaml", "--device", "cpu", "--steps", "1", "--real-data", "--rescan", "--json")
    )


def test_a_run_from_shards_equals_the_run_from_the_folder_bit_for_bit(run, tmp_path):
    write_images(tmp_path / "images")
    run("pack", "images", "shards", "--shard-size", "20kB", "--workers", "1")
    losses = []
    for source, path in (("imagefolder", "images"), ("shards", "shards")):
        data = {"source": source, "path": path, "num_train": None, "num_eval": None, "crop": "random_resized"}
        write_config(tmp_path, name=source, data=data, model={"num_classes": 2})
        run("train", source + ".yaml", "--device", "cpu", "--output", source)
        lines = (tmp_path / source / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] == losses[1]


MISTAKES = {
    "source that is not there": (["nowhere", "t"], ["nowhere is not a folder"]),
    "source without classes": (["empty", "t"], ["no folder train in empty"]),
    "target that is a file": (["images", "images/train/cat/0.png"], ["0.png is a file", "another TARGET"]),
    "target with other files": (["images", "other"], ["other/train has files that vit-ipu pack did not write"]),
    "size that is not a number": (["images", "t", "--shard-size", "big"], ["--shard-size 'big'", "256MB"]),
    "size of zero": (["images", "t", "--shard-size", "0MB"], ["--shard-size '0MB'"]),
    "unknown reaction": (["images", "t", "--on-error", "ignore"], ["--on-error 'ignore'", "raise or skip"]),
    "quality without encoding": (["images", "t", "--quality", "80"], ["--quality 80", "--short-side"]),
    "quality above 100": (["images", "t", "--short-side", "9", "--quality", "101"], ["--quality", "100"]),
    "verify of a folder without shards": (["images", "empty", "--verify"], ["empty has no shards of vit-ipu pack"]),
    "no target": (["images"], ["TARGET"]),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_line(monkeypatch, capsys, empty_folder, name):
    command, expected = MISTAKES[name]
    write_image_folder(empty_folder / "images")
    (empty_folder / "empty").mkdir()
    (empty_folder / "other" / "train").mkdir(parents=True)
    (empty_folder / "other" / "train" / "thesis.txt").write_text("")
    before = contents(empty_folder)
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", *command)
    assert (code, err.count("\n")) == (2, 1), err
    for text in expected:
        assert text in err
    assert contents(empty_folder) == before


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256 * 10**6), ("1.5GB", 1_500_000_000), ("20k", 20_000), ("7", 7), ("2 TB", 2 * 10**12)],
)
def test_sizes_of_shards_are_parsed(text, size):
    assert PackOptions.of(None, None, text, "raise").shard_size == size


# ------------------------------------------------------------------------------------- background


def transparent_images(root):
    """Writes black images of which only the first quarter is opaque: large ones (0.png) and small ones (1.png)."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number, side in enumerate((40, 8)):
                image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
                image.paste((0, 0, 0, 255), (0, 0, side, side // 4))
                image.save(str(root / split / name / f"{number}.png"))
    return root


@pytest.mark.parametrize(("background", "expected"), [(None, 0), ((255, 255, 255), 255)])
def test_reduced_images_are_laid_on_the_background(tmp_path, background, expected):
    source, notes = transparent_images(tmp_path / "images"), []
    options = PackOptions(short_side=20, background=background)
    pack(source, tmp_path / "shards", options, workers=1, cache=ListingCache(notify=notes.append))
    packed = open_split("shards", tmp_path / "shards", "train")
    large, small = (packed.picture(index) for index in (0, 1))
    assert large.size == (20, 20)
    assert abs(large.rgb().getpixel((10, 15))[0] - expected) <= 2
    assert large.rgb().getpixel((10, 1))[0] <= 2
    assert small.is_transparent()  # its bytes were kept
    dropped = ["note: of 4 images looked at, 4 have transparency, which is dropped: --background white lays resized "]
    dropped[0] += "images on white"
    assert notes == (dropped if background is None else [])


def test_no_transparency_is_lost_without_resizing(tmp_path):
    source, notes = transparent_images(tmp_path / "images"), []
    pack(source, tmp_path / "shards", PackOptions(), workers=1, cache=ListingCache(notify=notes.append))
    assert notes == []
    assert open_split("shards", tmp_path / "shards", "train").picture(0).is_transparent()


def test_another_background_is_refused(tmp_path):
    source = transparent_images(tmp_path / "images")
    run_pack(source, tmp_path / "shards", short_side=20, background=(255, 255, 255))
    with pytest.raises(UserError, match="was packed with background white, not None: pack with the same options"):
        run_pack(source, tmp_path / "shards", short_side=20)


def test_the_command_takes_a_background(tmp_path, monkeypatch, capsys):
    source = transparent_images(tmp_path / "images")
    for target, background in (("a", "white"), ("b", "255,255,255")):
        options = ["--short-side", "20", "--background", background]
        assert vit_ipu(monkeypatch, capsys, "pack", source, tmp_path / target, *options)[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    options = ["--short-side", "20", "--background", "whit"]
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", source, tmp_path / "c", *options)
    assert (code, err) == (2, "vit-ipu: --background whit is not a colour; did you mean 'white'?\n")

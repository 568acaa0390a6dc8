"""Packing a folder of images as shards, and reading the shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import data_config, vit_ipu, write_config, write_image_folder
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.packing import jobs as pack_jobs
from vit_ipu.data.packing import pack as packing
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack, verify
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.data.sources.shard_index import INDEX, TABLE
from vit_ipu.errors import DataError, PackInterrupted, RunFailed, UserError

ODD = ["a.b.c.JPEG", "ä ö.jpg", "-x;'\"*.jpeg", "n" * 200 + ".jpg", "_.jpg", "\udcff.jpg"]


def write_images(root, count=12, size=(40, 30)):
    """Writes random JPEGs of two classes with odd names, and one PNG; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog.v2"):
            folder = root / split / name
            folder.mkdir(parents=True)
            names = [*ODD, *(f"{number}.jpg" for number in range(count - len(ODD)))]
            for file in names:
                pixels = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "JPEG", quality=95)
                (folder / file).write_bytes(encoded.getvalue())
    Image.new("RGBA", (50, 60), (1, 2, 3, 4)).save(str(root / "train" / "cat" / "z.PNG"))
    return root


def run_pack(source, target, workers=2, **options):
    return pack(source, target, PackOptions(**{"shard_size": 20_000, **options}), workers=workers, cache=ListingCache())


def open_split(kind, path, split):
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=2)
    return open_source(data_config(source=kind, path=str(path)), model, split)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


# ---------------------------------------------------------------------------------- continuing


def test_intact_shards_are_kept_and_others_are_made_again(tmp_path):
    root, target = write_images(tmp_path / "images"), tmp_path / "shards"
    first = run_pack(root, target)
    before = contents(target)
    again = run_pack(root, target)
    assert [(split.kept, split.shards) for split in again.values()] == [
        (split.shards, split.shards) for split in first.values()
    ]
    assert contents(target) == before
    damaged, missing = sorted((target / "train").glob("*.tar"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    missing.unlink()
    assert run_pack(root, target)["train"].kept == first["train"].shards - 2
    assert contents(target) == before


@pytest.mark.parametrize("tail", ["", '{"name": "train-0000'])
def test_a_killed_pack_continues_after_its_journal(tmp_path, tail):
    root, target = write_images(tmp_path / "images"), tmp_path / "shards"
    first = run_pack(root, target)
    before = contents(target)
    folder = target / "train"
    index = json.loads((folder / INDEX).read_text())
    records = [index["settings"], *index["shards"][:2]]
    journal = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / ".packing.jsonl").write_text(journal)
    (folder / ".packing-train-00002.tar").write_bytes(b"half")
    for shard in index["shards"][2:]:
        (folder / shard["name"]).unlink()
    for name in (INDEX, TABLE):
        (folder / name).unlink()
    assert run_pack(root, target)["train"].kept == 2 < first["train"].shards
    assert contents(target) == before


OTHER_SETTINGS = {
    "short_side": ({"short_side": 24}, None, r"packed with short_side None, not 24: .*another TARGET"),
    "shard_size": ({"shard_size": 30_000}, None, "packed with shard_size 20000, not 30000"),
    "images": ({}, lambda root: (root / "train" / "cat" / "_.jpg").unlink(), "with 25 images, not 24: .*--rescan"),
    "names": (
        {},
        lambda root: (root / "train" / "cat" / "_.jpg").rename(root / "train" / "cat" / "y.jpg"),
        "packed with other image or class names",
    ),
}


@pytest.mark.parametrize("name", list(OTHER_SETTINGS))
def test_packing_with_other_settings_or_images_is_refused(tmp_path, name):
    options, change, message = OTHER_SETTINGS[name]
    root, target = write_images(tmp_path / "images"), tmp_path / "shards"
    run_pack(root, target)
    before = contents(target)
    if change is not None:
        change(root)
    with pytest.raises(UserError, match=message):
        run_pack(root, target, **options)
    (target / "train" / ".packing.jsonl").unlink()
    assert contents(target) == before


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_pack_leaves_complete_shards_and_can_be_continued(tmp_path, signal_number, code):
    root = write_images(tmp_path / "images", count=40, size=(300, 200))
    command = [sys.executable, "-m", "vit_ipu", "pack", "images", "shards", "--short-side", "150"]
    command += ["--shard-size", "100kB", "--workers", "2"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen(
        command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "shards" / "train"
    deadline = time.monotonic() + 60
    while not num_shards_in_journal(folder) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not (folder / INDEX).exists()
    if signal_number == signal.SIGINT:
        assert err.startswith("vit-ipu: interrupted, ")
        assert "shards of train are done; continue with: vit-ipu pack images shards --short-side 150" in err
    assert "Traceback" not in err
    if signal_number != signal.SIGKILL:
        assert not list(folder.glob(".packing-*"))
    else:
        wait_until_unlocked(folder)
    options = PackOptions(short_side=150, shard_size=100_000)
    again = pack(root, tmp_path / "shards", options, workers=2, cache=ListingCache())
    assert 0 < again["train"].kept < again["train"].shards
    pack(root, tmp_path / "at once", options, workers=2, cache=ListingCache())
    assert contents(tmp_path / "shards") == contents(tmp_path / "at once")


def num_shards_in_journal(folder):
    path = folder / ".packing.jsonl"
    return path.read_text().count("\n") - 1 if path.exists() and path.stat().st_size else 0


def wait_until_unlocked(folder):
    """Waits until the workers of a killed process have ended, which release the lock."""
    import fcntl

    deadline = time.monotonic() + 30
    with (folder / ".packing.jsonl").open("a") as journal:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.05)
    raise AssertionError("a worker is still alive")


def test_ctrl_c_while_packing_says_how_much_is_done(tmp_path, monkeypatch):
    root = write_images(tmp_path / "images")

    def interrupt(split, done, total):
        raise KeyboardInterrupt

    with pytest.raises(PackInterrupted, match=r"^0 of \d+ shards of train are done$"):
        pack(root, tmp_path / "s", PackOptions(), workers=1, cache=ListingCache(), progress=interrupt)


def test_two_processes_do_not_pack_into_the_same_folder(tmp_path):
    import fcntl

    (tmp_path / "shards" / "train").mkdir(parents=True)
    with (tmp_path / "shards" / "train" / ".packing.jsonl").open("a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is packing into .*train"):
            run_pack(write_images(tmp_path / "images"), tmp_path / "shards")


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


# ------------------------------------------------------------------- damage to what is written


def damage_json(change):
    def make(folder):
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return make


DAMAGE = {
    "index is not JSON": (lambda f: (f / INDEX).write_text("{"), "index.json is damaged"),
    "index without shards": (damage_json(lambda i: i.pop("shards")), "index.json is damaged"),
    "index of odd types": (damage_json(lambda i: i["shards"][0].update(bytes="1")), "index.json is damaged"),
    "index without settings": (damage_json(lambda i: i.pop("settings")), "index.json is damaged"),
    "shard missing": (lambda f: (f / "train-00000.tar").unlink(), "train-00000.tar is missing: copy it again"),
    "shard cut off": (
        lambda f: os.truncate(str(f / "train-00000.tar"), 1000),
        r"train-00000.tar has 1000 bytes, not \d+: copy it again",
    ),
    "unknown shard": (lambda f: (f / "x.tar").write_bytes(b""), "x.tar is not in index.json: move it away"),
    "table missing": (lambda f: (f / TABLE).unlink(), "index.npz is missing or damaged"),
    "table cut off": (lambda f: os.truncate(str(f / TABLE), 500), "index.npz is missing or damaged"),
    "table of other shards": (
        damage_json(lambda i: i["shards"][0].update(sha256="0" * 64)),
        "index.npz is missing or damaged",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damaged_shards_are_refused(tmp_path, name):
    damage, message = DAMAGE[name]
    run_pack(write_images(tmp_path / "images"), tmp_path / "shards")
    damage(tmp_path / "shards" / "train")
    with pytest.raises(DataError, match=message):
        open_split("shards", tmp_path / "shards", "train")


def test_an_index_that_cannot_be_read_is_named(tmp_path):
    run_pack(write_images(tmp_path / "images"), tmp_path / "shards")
    (tmp_path / "shards" / "train" / INDEX).unlink()
    (tmp_path / "shards" / "train" / INDEX).mkdir()
    with pytest.raises(DataError, match="cannot read .*index.json: Is a directory"):
        packing.read_index(tmp_path / "shards" / "train")


def test_verify_reads_every_byte(tmp_path):
    target = tmp_path / "shards"
    run_pack(write_images(tmp_path / "images"), target)
    assert verify(target, workers=2) == {"train": 25, "val": 24}
    path = target / "val" / "val-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="val-00001.tar is missing or has changed: run the same"):
        verify(target, workers=2)
    with pytest.raises(DataError, match="images has no shards of vit-ipu pack: expected .*images/train/index.json"):
        verify(tmp_path / "images", workers=1)


def test_a_killed_process_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_jobs, "_write_samples", lambda *args: os._exit(9))
    with pytest.raises(RunFailed, match="was killed, perhaps because memory ran out: .*fewer --workers"):
        run_pack(write_images(tmp_path / "images"), tmp_path / "shards")


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_jobs, "_write_samples", refuse)
    with pytest.raises(OSError, match="No space left on device: '.*shards/train'"):
        run_pack(write_images(tmp_path / "images"), tmp_path / "shards")


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

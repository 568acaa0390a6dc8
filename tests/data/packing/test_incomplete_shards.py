"""Packing that is interrupted, fails or is continued, and shards that are incomplete or damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from odd_images import contents, open_split, run_pack, write_images

from vit_ipu.data.packing import jobs as pack_jobs
from vit_ipu.data.packing import pack as packing
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.packing.verification import verify
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shard_index import INDEX, TABLE
from vit_ipu.errors import DataError, PackInterrupted, RunFailed, UserError

# ------------------------------------------------------------------------ interrupted and continued


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

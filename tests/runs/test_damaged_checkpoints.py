"""Damaged checkpoints: noticed by checksums, never used in silence; a run uses its newest whole one instead."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil

import pytest
from helpers import equal_states
from small_runs import metrics_without_times, names_in, small_config, train_in

from vit_ipu.errors import CheckpointError, DamagedCheckpoint
from vit_ipu.files import CHECKSUMS, write_checksums
from vit_ipu.runs.checkpoint import load_checkpoint, load_resumable
from vit_ipu.weights.native import load_description, unreadable
from vit_ipu.weights.read import read_weights

CONFIG = small_config(checkpoint_every=2, keep_checkpoints=3, evaluate_every=2)
FILES = ("checksums.json", "config.json", "model.safetensors", "optimizer.safetensors", "state.json")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "one bit": flip_a_bit,
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    train_in(path, CONFIG)
    return path


@pytest.fixture
def run_folder(whole_run, empty_folder):
    """Returns a copy of a run with checkpoints of updates 4, 6 and 8."""
    shutil.copytree(str(whole_run), "run")
    return empty_folder / "run"


def newest_of(run_folder):
    return run_folder / "checkpoints" / "update-00000008"


def load(checkpoint, notify=lambda text: None):
    return load_resumable(checkpoint, load_description(checkpoint), device_kind="cpu", notify=notify)


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_a_checkpoint_is_noticed_and_names_the_file(run_folder, name, damage):
    description = load_description(newest_of(run_folder))
    DAMAGES[damage](newest_of(run_folder) / name)
    with pytest.raises(DamagedCheckpoint, match=f"update-00000008/{name}: "):
        load_resumable(newest_of(run_folder), description, device_kind="cpu")


def test_every_flipped_byte_is_noticed(run_folder):
    draws, checkpoint = random.Random(12), newest_of(run_folder)
    for _ in range(100):
        path = checkpoint / draws.choice(FILES)
        content = path.read_bytes()
        place = draws.randrange(len(content))
        changed = bytes([content[place] ^ draws.randrange(1, 256)])
        path.write_bytes(content[:place] + changed + content[place + 1 :])
        with pytest.raises(DamagedCheckpoint, match=f"{path.name} is damaged"):
            load_checkpoint(checkpoint, device_kind="cpu")
        path.write_bytes(content)
    load_checkpoint(checkpoint, device_kind="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_resumed_run_falls_back_to_the_newest_whole_checkpoint_and_ends_the_same(run_folder, whole_run, name):
    flip_a_bit(newest_of(run_folder) / name)
    summary, lines = train_in(run_folder, CONFIG, resume=True)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"update-00000008/{name}: {name} is damaged: its bytes are not those that were written; " in warnings[0]
    assert warnings[0].endswith("update-00000006 is used instead")
    assert "resuming at update 6" in lines
    assert not summary.interrupted
    assert metrics_without_times(run_folder) == metrics_without_times(whole_run)
    ends = [load_checkpoint(newest_of(folder), device_kind="cpu") for folder in (run_folder, whole_run)]
    assert equal_states(ends[0], ends[1])
    assert names_in(run_folder / "checkpoints") == [
        "damaged-update-00000008",
        "update-00000004",
        "update-00000006",
        "update-00000008",
    ]


def test_two_damaged_checkpoints_are_both_named(run_folder):
    (newest_of(run_folder) / "state.json").unlink()
    flip_a_bit(run_folder / "checkpoints" / "update-00000006" / "config.json")
    _, lines = train_in(run_folder, CONFIG, resume=True)
    warning = next(line for line in lines if line.startswith("warning: "))
    assert "state.json is missing; " in warning
    assert "update-00000006/config.json: config.json is damaged" in warning
    assert "update-00000004 is used instead" in warning
    assert "resuming at update 4" in lines


def test_a_run_without_a_whole_checkpoint_is_refused_and_unchanged(run_folder):
    for path in (run_folder / "checkpoints").iterdir():
        flip_a_bit(path / "model.safetensors")
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"^no checkpoint is whole: .*-00000008/.*-00000006/.*-00000004/"):
        train_in(run_folder, CONFIG, resume=True)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_are_read_from_a_whole_checkpoint_of_a_run_but_never_instead_of_a_named_one(run_folder, name):
    flip_a_bit(newest_of(run_folder) / name)
    lines = []
    found = read_weights(str(run_folder), notify=lines.append)
    assert found.path == run_folder / "checkpoints" / "update-00000006"
    assert len(lines) == 1
    assert re.match(rf"warning: cannot read .*update-00000008/{name}: .*update-00000006 is used instead$", lines[0])
    with pytest.raises(DamagedCheckpoint, match=f"update-00000008/{name}: {name} is damaged"):
        read_weights(str(newest_of(run_folder)))


def test_a_file_of_another_checkpoint_is_noticed(run_folder):
    other = run_folder / "checkpoints" / "update-00000006"
    shutil.copy(str(other / "optimizer.safetensors"), str(newest_of(run_folder)))
    with pytest.raises(DamagedCheckpoint, match="optimizer.safetensors is damaged"):
        load(newest_of(run_folder))


def test_a_checkpoint_of_another_update_under_this_name_is_noticed(run_folder):
    shutil.rmtree(str(newest_of(run_folder)))
    (run_folder / "checkpoints" / "update-00000006").rename(newest_of(run_folder))
    with pytest.raises(DamagedCheckpoint, match="state.json is damaged: it is of update 6 of 8, unlike its folder"):
        load(newest_of(run_folder))


EDITS = {
    "update that is huge": lambda s: s["progress"].update(update=10**9),
    "update that is negative": lambda s: s["progress"].update(update=-5, host_step=-5, samples=-160),
    "update that is a fraction": lambda s: s["progress"].update(update=8.0),
    "update that is true": lambda s: s["progress"].update(update=True, host_step=True, samples=32),
    "host step that differs": lambda s: s["progress"].update(host_step=7),
    "samples that differ": lambda s: s["progress"].update(samples=1),
    "progress beyond the end": lambda s: s["progress"].update(update=9, host_step=9, samples=288),
    "progress that is missing": lambda s: s.pop("progress"),
    "progress with another key": lambda s: s["progress"].update(epoch=1),
    "optimizer that is missing": lambda s: s["state"].pop("optimizer"),
    "optimizer that is empty": lambda s: s["state"].update(optimizer={}),
    "optimizer of fewer weights": lambda s: s["state"]["optimizer"].pop("head.bias"),
    "random numbers that are missing": lambda s: s["state"].pop("rng"),
    "state that is a list": lambda s: s.update(state=[]),
    "device that is missing": lambda s: s.pop("device"),
    "numerics that do not exist": lambda s: s.update(numerics="half"),
    "numerics that are a list": lambda s: s.update(numerics=["ipu"]),
    "counts that are a list": lambda s: s["state"].update(counts=[3]),
    "counts that are negative": lambda s: s["state"].update(counts={"overflows": -1}),
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("version", ["with checksums", "without"])
def test_edited_states_are_refused_like_damage(run_folder, edit, version):
    path = newest_of(run_folder)
    values = json.loads((path / "state.json").read_text())
    EDITS[edit](values)
    (path / "state.json").write_text(json.dumps(values))
    write_checksums(path)
    if version == "without":
        as_by_an_earlier_version(path)
    with pytest.raises(DamagedCheckpoint, match="state.json is damaged: "):
        load(path)


HOSTILE = {
    "a pipe": lambda path: (path.unlink(), os.mkfifo(str(path))),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "large": lambda path: os.truncate(str(path), 1 << 40),
    "nested": lambda path: path.write_text("[" * 100000),
    "a list": lambda path: path.write_text("[]"),
    "endless numbers": lambda path: path.write_text('{"files": {"config.json": {"size": Infinity, "sha256": 3}}}'),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_checksums_that_are_not_a_small_file_of_ours_are_damage(run_folder, what):
    HOSTILE[what](newest_of(run_folder) / CHECKSUMS)
    with pytest.raises(DamagedCheckpoint, match="checksums.json is damaged: it is not "):
        load_checkpoint(newest_of(run_folder), device_kind="cpu")


def as_by_an_earlier_version(checkpoint):
    (checkpoint / CHECKSUMS).unlink()
    values = json.loads((checkpoint / "config.json").read_text())
    del values["checksums"]
    (checkpoint / "config.json").write_text(json.dumps(values))


def test_checkpoints_of_earlier_versions_load_with_a_note(run_folder):
    expected = load(newest_of(run_folder))
    as_by_an_earlier_version(newest_of(run_folder))
    lines = []
    assert equal_states(load(newest_of(run_folder), lines.append), expected)
    assert read_weights(str(run_folder), notify=lines.append).path == newest_of(run_folder)
    assert len(lines) == 2
    assert all(line.startswith("note: ") and "has no checksums.json" in line for line in lines)


def test_damage_that_earlier_versions_could_not_notice_until_reading_falls_back_too(run_folder):
    as_by_an_earlier_version(newest_of(run_folder))
    DAMAGES["cut off"](newest_of(run_folder) / "model.safetensors")
    lines = []
    assert read_weights(str(run_folder), notify=lines.append).path.name == "update-00000006"
    assert "update-00000006 is used instead" in lines[-1]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, DamagedCheckpoint), (errno.EACCES, CheckpointError), (errno.EMFILE, CheckpointError)],
)
def test_a_file_that_may_be_whole_but_cannot_be_opened_is_not_damage(number, kind, tmp_path):
    assert type(unreadable(tmp_path, OSError(number, "reason"))) is kind

"""Damaged checkpoints are never used in silence: they are refused, or an earlier one is used with a warning."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest
from fault_runs import one_clear_line
from forked_runs import ForkedRuns
from helpers import vit_ipu, write_config

from vit_ipu.errors import CheckpointError
from vit_ipu.runs.checkpoint import load_checkpoint

SECTIONS: Dict[str, Dict[str, Any]] = {
    "data": {"num_train": 8, "num_eval": 8},
    "pipeline": {"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
    "optim": {"optimizer": "adamw", "learning_rate": 1e-3},
    "run": {"updates": 4, "checkpoint_every": 2, "keep_checkpoints": 2},
}
NEWEST, EARLIER = "update-00000004", "update-00000002"
NUM_FLIPS = 100


def truncate(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path, other: Path) -> None:
    path.unlink()


def extend(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def replace(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def flip_a_bit(path: Path, other: Path) -> None:
    flip(path, random.Random(0))


def flip(path: Path, draw: random.Random) -> None:
    """Flips one bit, or all bits of one byte, at a random place of a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.choice([1 << draw.randrange(8), 255])
    path.write_bytes(bytes(content))


DAMAGES = [truncate, empty, remove, extend, replace, flip_a_bit]


@pytest.fixture(scope="module")
def trained(forked_runs: ForkedRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the config `run.yaml`, its run, and a run with another seed."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed in (("run", 1), ("other", 2)):
        config = write_config(folder, name=name, **dict(SECTIONS, run=dict(SECTIONS["run"], seed=seed)))
        ended = forked_runs.run(folder, ["train", config, "--device", "cpu", "--output", name])
        assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_resume_refuses_a_damaged_checkpoint_or_warns_and_uses_the_earlier_one(
    monkeypatch, capsys, trained, tmp_path, damage
):
    monkeypatch.setattr("vit_ipu.report.page.write_report", lambda folder: None)  # takes longer than the resume
    newest = trained / "run" / "checkpoints" / NEWEST
    for name in sorted(path.name for path in newest.iterdir()):
        run = tmp_path / name
        shutil.copytree(str(trained / "run"), str(run))
        damaged, other = (folder / "checkpoints" / NEWEST / name for folder in (run, trained / "other"))
        damage(damaged, other)
        if damaged.exists() and damaged.read_bytes() == (newest / name).read_bytes():
            continue  # state.json of the other run is the same
        command = ["train", trained / "run.yaml", "--device", "cpu", "--output", run, "--resume"]
        code, out, err = vit_ipu(monkeypatch, capsys, *command)
        text = re.sub(r"\s+", "", out + err)  # the terminal breaks long lines
        assert NEWEST in text, (name, out, err)
        if code == 0:
            assert "warning:" in text, (name, out)
            assert EARLIER in text, (name, out)
            assert weights(run) == weights(trained / "run"), name
        else:
            assert code in (1, 2), name
            assert one_clear_line(err), (name, err)


def weights(run: Path) -> List[bytes]:
    return [
        (run / "checkpoints" / NEWEST / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")
    ]


@pytest.mark.parametrize("number", range(NUM_FLIPS))
def test_every_flipped_bit_or_byte_of_a_checkpoint_is_detected(trained, tmp_path, number):
    """Flips places that are spread over the files by their sizes, and at least one in twenty in each file."""
    draw = random.Random(number)
    checkpoint = tmp_path / NEWEST
    shutil.copytree(str(trained / "run" / "checkpoints" / NEWEST), str(checkpoint))
    files = sorted(checkpoint.iterdir())
    by_size = draw.choices(files, [path.stat().st_size for path in files])[0]
    flip(files[number // 4 % len(files)] if number % 4 == 0 else by_size, draw)
    with pytest.raises(CheckpointError):
        load_checkpoint(checkpoint, device_kind="cpu")


def test_an_undamaged_checkpoint_loads(trained):
    state, progress = load_checkpoint(trained / "run" / "checkpoints" / NEWEST, device_kind="cpu")
    assert progress.update == 4
    assert state["model"]

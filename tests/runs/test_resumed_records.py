"""What a resumed run keeps, makes up and says: metrics, evaluations, settings, environment and messages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import equal_states, interrupted_after, vit_ipu, write_config
from PIL import Image
from small_runs import metrics_without_times, small_config, train_in

from vit_ipu.backends.contract import Instances
from vit_ipu.config_file import load_config
from vit_ipu.runs import logger
from vit_ipu.runs.checkpoint import load_checkpoint
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.native import newest_checkpoint


def test_metrics_after_the_last_checkpoint_are_written_again(monkeypatch, capsys, empty_folder):
    """A crash, unlike Ctrl-C, loses what came after the last checkpoint, metrics included."""
    config = write_config(empty_folder, run={"updates": 8, "checkpoint_every": 2})
    original = logger.RunLogger.step

    def crash(self, progress, *args):
        original(self, progress, *args)
        if progress.update == 5:
            raise MemoryError("out of memory")

    with monkeypatch.context() as context:
        context.setattr(logger.RunLogger, "step", crash)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")[0] == 1
    metrics = empty_folder / "runs" / "tiny" / "metrics.jsonl"
    assert [x["update"] for x in read_metrics(metrics)] == [1, 2, 3, 4, 5]
    metrics.write_text(metrics.read_text() + '{"update": 6, "lo')  # a line cut off
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert [x["update"] for x in read_metrics(metrics) if "loss" in x] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_damaged_line_of_the_metrics_is_told_and_later_lines_are_kept(empty_folder):
    path, config = empty_folder / "run", small_config(evaluate_every=2, checkpoint_every=4)
    train_in(path, config)
    before = metrics_without_times(path)
    shutil.rmtree(str(path / "checkpoints" / "update-00000008"))
    lines = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"loss"', b'"l\xffss"')
    lines[-1] = b'{"update": 8, "host'  # what a crash leaves is not told
    (path / "metrics.jsonl").write_bytes(b"".join(lines))
    _, shown = train_in(path, config, resume=True)
    assert [line for line in shown if "warning" in line] == [
        f"warning: {path / 'metrics.jsonl'} has 1 damaged line, left out from here on"
    ]
    assert metrics_without_times(path) == before[:1] + before[2:]
    (path / "metrics.jsonl").write_bytes(b"".join(lines[:1] + [b"damaged\n"] * 101 + lines[2:]))
    assert len(read_metrics(path / "metrics.jsonl")) == 1


def test_resuming_a_finished_run_prints_its_summary_again(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    command = ["train", config, "--device", "cpu", "--json"]
    code, out, _ = vit_ipu(monkeypatch, capsys, *command)
    before = (empty_folder / "runs" / "tiny" / "metrics.jsonl").read_text()
    code, again, _ = vit_ipu(monkeypatch, capsys, *command, "--resume")
    assert code == 0
    assert {**json.loads(again), "seconds": 0} == {**json.loads(out), "seconds": 0}
    assert (empty_folder / "runs" / "tiny" / "metrics.jsonl").read_text() == before


def test_a_resumed_run_states_its_settings_of_today(empty_folder):
    path = empty_folder / "run"
    train_in(path, small_config(evaluate_every=2))
    later = small_config(evaluate_every=4, keep_best="loss", log_every=2)
    train_in(path, later, resume=True)
    assert load_config(path) == later
    assert "config_changes" not in (path / "environment.json").read_text()  # none that had to be allowed


def test_a_restarted_run_is_not_restarted_again_to_continue(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 6})
    with monkeypatch.context() as context:
        interrupted_after(context, 3)
        _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--restart", "--device", "cpu")
    (hint,) = [line for line in out.splitlines() if "continue with: vit-ipu " in line]
    assert hint.endswith(f"continue with: vit-ipu train {config} --device cpu --output runs/tiny --resume")
    code, out, _ = vit_ipu(monkeypatch, capsys, *hint.split("vit-ipu ")[1].split())
    assert code == 0
    assert "resuming at update 3" in out


def test_a_second_run_of_a_config_says_where_the_first_one_is(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    notes = []
    for options in ([], [], ["--resume"]):
        code, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", *options)
        assert code == 0
        notes.append([line for line in out.splitlines() if "earlier run" in line])
    note = "note: runs/tiny has an earlier run, so the new one is in runs/tiny-2; --resume continues the newest one"
    assert notes == [[], [note], []]


def test_a_resumed_run_says_at_which_update_it_continues(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 6})
    with monkeypatch.context() as context:
        interrupted_after(context, 3)
        _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--set", "data.num_workers=0")
    hint = "continue with: vit-ipu train {} --device cpu --set data.num_workers=0 --output runs/tiny --resume\n"
    assert hint.format(config) in out
    _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")
    assert "resuming at update 3" in out
    for path in (empty_folder / "runs" / "tiny" / "checkpoints").iterdir():
        shutil.rmtree(str(path))
    _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")
    assert "resuming at update 0" in out


def test_a_resumed_run_keeps_the_environment_of_its_beginning(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    path = empty_folder / "runs" / "tiny" / "environment.json"
    vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim")
    first = json.loads(path.read_text())
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume", "--output", "runs/tiny")[0] == 2
    assert json.loads(path.read_text()) == first  # a refused resume writes nothing
    vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim", "--resume")
    resumed = json.loads(path.read_text())
    assert [environment["device"] for environment in resumed.pop("resumed")] == ["ipu-sim"]
    assert resumed == first


@pytest.mark.parametrize("missing", [["environment.json"], ["environment.json", ".lock"]])
def test_a_resume_that_fails_keeps_every_file_of_the_run(monkeypatch, capsys, empty_folder, missing):
    config = write_config(empty_folder)
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 0
    for name in missing:
        (empty_folder / "run" / name).unlink()
    before = {path: path.read_bytes() for path in (empty_folder / "run").rglob("*") if path.is_file()}
    command = ["train", config, "--output", "run", "--resume", "--device"]
    code, _, err = vit_ipu(monkeypatch, capsys, *command, "ipu-sim")
    assert code == 2
    assert "cannot be resumed on ipu-sim" in err
    assert {path: path.read_bytes() for path in (empty_folder / "run").rglob("*") if path.is_file()} == before
    assert vit_ipu(monkeypatch, capsys, *command, "cpu")[0] == 0


def break_an_image(folder: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(40):
                Image.new("RGB", (30, 30), (index, 5, 9)).save(str(folder / split / label / f"{index:02d}.png"))
    (folder / "val" / "b" / "39.png").write_text("no image")


@pytest.mark.parametrize("workers", [0, 1])
def test_weights_are_kept_when_the_evaluation_fails(monkeypatch, capsys, empty_folder, workers):
    break_an_image(empty_folder / "images")
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None, "num_workers": workers}
    config = write_config(empty_folder, data=data, model={"num_classes": 2})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")
    assert code == 2
    assert re.fullmatch(r"vit-ipu: cannot read the image images/val/b/39.png: .*\n", err)
    assert newest_checkpoint(empty_folder / "runs" / "tiny" / "checkpoints").name == "update-00000004"
    Image.new("RGB", (30, 30)).save(str(empty_folder / "images" / "val" / "b" / "39.png"))
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert "top1" in read_metrics(empty_folder / "runs" / "tiny" / "metrics.jsonl")[-1]


def test_an_interrupted_evaluation_is_done_again_when_resumed(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    original = logger.evaluation_loader

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    with monkeypatch.context() as context:
        context.setattr(logger, "evaluation_loader", interrupted)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")[0] == 130
    metrics = empty_folder / "runs" / "tiny" / "metrics.jsonl"
    assert "top1" not in read_metrics(metrics)[-1]
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert "top1" in read_metrics(metrics)[-1]


STOPS = {"before": "step", "at its start": "evaluation_loader", "at its end": "evaluate_batches"}


@pytest.mark.parametrize("how", ["signal", "crash"])
@pytest.mark.parametrize("stop", list(STOPS))
@pytest.mark.parametrize("number", [1, 2])
def test_an_evaluation_that_was_lost_is_made_up_before_training_continues(monkeypatch, empty_folder, stop, how, number):
    """The first evaluation is due in the middle of the run, the second one at its end."""
    config = small_config(updates=4, evaluate_every=2, checkpoint_every=2)
    train_in(empty_folder / "whole", config)
    place, calls = logger.RunLogger if stop == "before" else logger, []
    original, at_call = getattr(place, STOPS[stop]), 2 * number if stop == "before" else number

    def stopping(*args, **options):
        result = original(*args, **options)
        calls.append(1)
        if len(calls) == at_call:
            if how == "crash":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as context:
        context.setattr(place, STOPS[stop], stopping)
        with suppress(MemoryError):
            train_in(empty_folder / "parts", config)
    train_in(empty_folder / "parts", config, resume=True)
    assert metrics_without_times(empty_folder / "parts") == metrics_without_times(empty_folder / "whole")
    ends = [newest_checkpoint(empty_folder / name / "checkpoints") for name in ("whole", "parts")]
    assert equal_states(*(load_checkpoint(end, device_kind="cpu") for end in ends))


def test_all_processes_evaluate_if_one_of_them_has_not_and_nothing_is_recorded_twice(monkeypatch, empty_folder):
    train = import_module("vit_ipu.train")

    config = small_config(updates=2)
    train_in(empty_folder / "run", config)
    before = metrics_without_times(empty_folder / "run")
    asked = []

    def another_lacks_it(tensor):
        asked.append(tensor)
        return torch.ones_like(tensor) if len(asked) == 1 else tensor  # later questions are about signals

    monkeypatch.setattr("vit_ipu.backends.native.backend.instances", lambda kind: Instances(mean=another_lacks_it))
    monkeypatch.setattr(train, "require_agreement", lambda *args: None)  # its answer would come from the same mean
    evaluated, original = [], logger.evaluate_batches
    monkeypatch.setattr(
        logger, "evaluate_batches", lambda *args, **options: evaluated.append(1) or original(*args, **options)
    )
    train_in(empty_folder / "run", config, resume=True)
    assert evaluated == [1]
    assert metrics_without_times(empty_folder / "run") == before

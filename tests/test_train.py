"""Training from end to end: run folders, failures, tracking."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_config, vit_ipu, write_config, write_image_folder

from vit_ipu.backends.contract import Instances
from vit_ipu.runs import logger
from vit_ipu.runs.checkpoint import load_checkpoint
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.native import newest_checkpoint


@pytest.mark.parametrize("device", ["cpu", "ipu-sim", pytest.param("ipu", marks=pytest.mark.ipus(4))])
def test_a_run_folder_holds_config_environment_metrics_checkpoints_and_report(run, empty_folder, device):
    config = write_config(
        empty_folder, run={"updates": 6, "evaluate_every": 2, "checkpoint_every": 3, "keep_checkpoints": 1}
    )
    out = run("train", config, "--device", device)
    folder = empty_folder / "runs" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "evaluation.json",
        "examples",
        "metrics.jsonl",
        "report.html",
    ]
    lines = read_metrics(folder / "metrics.jsonl")
    steps, evaluations = [x for x in lines if "loss" in x], [x for x in lines if "top1" in x]
    assert [x["update"] for x in steps] == [1, 2, 3, 4, 5, 6]
    assert [x["update"] for x in evaluations] == [2, 4, 6]
    assert set(steps[0]) == {"update", "host_step", "samples", "loss", "learning_rate", "images_per_second"}
    assert set(evaluations[0]) == {"update", "host_step", "samples", "top1", "top5", "evaluation_loss"}
    assert steps[-1]["samples"] == 6 * 32
    assert all(0 <= x["top1"] <= x["top5"] <= 100 for x in evaluations)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["update-00000006"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["simulated"] is (device == "ipu-sim")
    assert environment["device"] == device
    assert environment["compute"] == "float32"
    assert ("poptorch" in environment["versions"]) is (device != "cpu")
    assert {"torch", "torchvision", "numpy", "pillow"} <= set(environment["versions"])
    assert "top-1" in out
    assert len(list((folder / "examples").glob("*.png"))) == 10


def test_device_iterations_are_counted_in_updates_and_host_steps(run, empty_folder):
    config = write_config(
        empty_folder,
        pipeline={"device_iterations": 2},
        optim={"schedule": "linear", "learning_rate": 1.0e-3},
        run={"updates": 8, "log_every": 2},
    )
    run("train", config, "--device", "ipu-sim")
    steps = [x for x in read_metrics(empty_folder / "runs" / "tiny" / "metrics.jsonl") if "loss" in x]
    assert [(x["update"], x["host_step"], x["samples"]) for x in steps] == [(4, 2, 128), (8, 4, 256)]
    assert [x["learning_rate"] for x in steps] == pytest.approx([0.75e-3, 0.25e-3])


def test_train_prints_json_when_asked(run, empty_folder):
    summary = json.loads(run("train", write_config(empty_folder), "--device", "ipu-sim", "--json"))
    assert summary["simulated"] is True
    assert summary["update"] == summary["total_updates"] == 4
    assert summary["num_images"] == 50
    assert {"top1", "top5", "loss", "run", "seconds", "device", "samples"} <= set(summary)


def test_two_epochs_are_as_many_updates_as_twice_the_images_fill(run, empty_folder):
    config = write_config(empty_folder, run={"updates": None, "epochs": 2.0})
    assert json.loads(run("train", config, "--device", "cpu", "--json"))["total_updates"] == 6  # 2 x 96 / 32


def test_one_process_at_a_time_trains_in_a_folder(monkeypatch, capsys, empty_folder):
    from vit_ipu.config_file import load_config
    from vit_ipu.runs.folder import RunFolder

    config = write_config(empty_folder)
    other = RunFolder.create(Path("runs/tiny"), load_config(config))
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume", "--output", "runs/tiny")
    assert code == 2
    assert "another process is training in runs/tiny" in err
    del other


def test_a_folder_that_is_not_a_run_is_left_untouched(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder)
    for name in ("environment.json", "metrics.jsonl", "checkpoints"):
        folder = empty_folder / f"mine-{name}"
        folder.mkdir()
        (folder / name).write_text("mine")
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", str(folder))
        assert code == 2
        assert f"already holds {name}" in err
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, "mine")]


def test_a_closed_stdout_does_not_stop_the_training(empty_folder):
    config = write_config(empty_folder, run={"updates": 4, "evaluate_every": 1})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=120)
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == "update-00000004"
    assert "Traceback" not in process.stderr.read()


def test_runs_without_a_name_are_numbered(run, empty_folder):
    config = write_config(empty_folder)
    for _ in range(2):
        run("train", config, "--device", "cpu")
    assert sorted(p.name for p in (empty_folder / "runs").iterdir()) == ["tiny", "tiny-2"]


def test_a_loss_that_is_not_finite_fails_the_run(monkeypatch, capsys, empty_folder):
    run = {"updates": 60, "max_loss_factor": None}
    config = write_config(empty_folder, optim={"learning_rate": 1e6, "momentum": 0.99}, run=run)
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")
    assert code == 1
    assert re.fullmatch(r"vit-ipu: the loss is (nan|inf) at update \d+: lower optim.learning_rate .*\n", err)


def test_a_run_that_fails_at_once_leaves_no_folder_behind(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, model={"init": "nowhere.safetensors"})
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "notes.txt").write_text("keep me")
    for output in ("new", "mine"):
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", output)[0] == 2
    assert not (empty_folder / "new").exists()
    assert [p.name for p in (empty_folder / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("failing", ["write_whole", "lock"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_made_is_left_as_it_was(monkeypatch, empty_folder, failing, error):
    from vit_ipu.errors import UserError
    from vit_ipu.runs import folder

    def fail(*args):
        raise error

    monkeypatch.setattr(folder, failing, fail)
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "notes.txt").write_text("keep me")
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    for output in ("new/run", "mine"):
        with pytest.raises(expected, match="^$|^cannot write the run folder .*: No space left on device$"):
            folder.RunFolder.create(empty_folder / output, tiny_config())
    assert sorted(path.name for path in empty_folder.rglob("*")) == ["mine", "notes.txt"]


def test_a_start_beside_another_process_removes_none_of_its_files(empty_folder):
    from vit_ipu.errors import UserError
    from vit_ipu.runs.folder import RunFolder

    first = RunFolder.create(Path("run"), tiny_config())
    first.config.unlink()  # as if the first one were about to write it
    first.checkpoints.rmdir()
    with pytest.raises(UserError, match="another process is training in run"):
        RunFolder.create(Path("run"), tiny_config())
    assert sorted(path.name for path in Path("run").iterdir()) == [".lock", "checkpoints"]
    first.release()
    assert list(empty_folder.iterdir()) == []


def test_fine_tuning_starts_from_another_runs_weights(run, empty_folder):
    run("train", write_config(empty_folder, "first"), "--device", "cpu")
    second = write_config(empty_folder, "second", run={"updates": 1}, optim={"learning_rate": 1e-12})
    run("train", second, "--device", "ipu-sim", "--set", "model.init=runs/first")
    first, second = (newest_checkpoint(empty_folder / "runs" / name / "checkpoints") for name in ("first", "second"))
    a, b = (load_checkpoint(p, device_kind=d)[0]["model"] for p, d in ((first, "cpu"), (second, "ipu-sim")))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-9)


def test_tensorboard_gets_the_metrics(run, empty_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("train", write_config(empty_folder, run={"updates": 4, "tracking": "tensorboard"}), "--device", "cpu")
    events = EventAccumulator(str(empty_folder / "runs" / "tiny" / "tensorboard"))
    events.Reload()
    expected = [x for x in read_metrics(empty_folder / "runs" / "tiny" / "metrics.jsonl") if "loss" in x]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (x["update"], pytest.approx(x["loss"], rel=1e-5)) for x in expected
    ]
    assert len(events.Scalars("top1")) == 1


def test_wandb_runs_offline(run, empty_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("train", write_config(empty_folder, run={"updates": 4, "tracking": "wandb"}), "--device", "cpu")
    logs = list((empty_folder / "runs" / "tiny" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    assert b"evaluation_loss" in logs[0].read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_named_counted_and_left_out(run, empty_folder, workers):
    write_image_folder(empty_folder / "images", count=8)
    for split in ("train", "val"):
        (empty_folder / "images" / split / "dog" / "1.png").write_text("no image")
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None, "num_workers": workers}
    config = write_config(empty_folder, data=dict(data, on_error="skip"), model={"num_classes": 2})
    found = json.loads(run("train", config, "--device", "cpu", "--json"))
    assert found["num_images"] == 15
    last = read_metrics(empty_folder / "runs" / "tiny" / "metrics.jsonl")[-1]
    assert (last["skipped"], last["evaluation_images"]) == (2, 15)
    evaluated = json.loads(run("evaluate", config, "--checkpoint", "runs/tiny", "--device", "cpu", "--json"))
    assert evaluated["num_images"] == 15
    assert "val/dog/1.png" in evaluated["skipped"][0]


def test_an_evaluation_without_an_image_fails():
    from vit_ipu.errors import RunFailed
    from vit_ipu.evaluate import evaluate_batches

    message = "^there is no held-out image that can be read: replace the images, or evaluate on others$"
    with pytest.raises(RunFailed, match=message):
        evaluate_batches(SimpleNamespace(instances=Instances()), [])


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_the_initial_weights_are_evaluated_if_the_config_asks(run, empty_folder, device):
    """A new head of zeros predicts the first class for every image."""
    changes = {"model": {"head_init": "zero"}, "run": {"updates": 4, "evaluate_every": 2, "evaluate_at_start": True}}
    config = write_config(empty_folder, **changes)
    out = run("train", config, "--device", device, "--output", "run")
    lines = [line for line in read_metrics(empty_folder / "run" / "metrics.jsonl") if "top1" in line]
    assert [line["update"] for line in lines] == [0, 2, 4]
    assert lines[0]["top1"] <= 20
    assert lines[0]["evaluation_loss"] == pytest.approx(math.log(10), rel=1e-4)
    assert f"update 0: top-1 {lines[0]['top1']:.2f} %" in out
    assert (
        f"{lines[0]['top1']:.2f}&nbsp;%" in (empty_folder / "run" / "report.html").read_text().split("Held-out loss")[0]
    )
    out = run("report", "run", "run2") if run("train", config, "--device", device, "--output", "run2") else ""
    assert f"run: top-1 {lines[-1]['top1']:.2f} % at update 4 (before training {lines[0]['top1']:.2f} %)" in out


def test_a_run_that_is_stopped_after_its_first_evaluation_does_not_repeat_it(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, run={"updates": 4, "evaluate_at_start": True})
    evaluate, calls = logger.evaluate_batches, []

    def counted(backend, batches, **options):
        calls.append(1)
        return evaluate(backend, batches, **options)

    def stop(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(logger, "evaluate_batches", counted)
    with monkeypatch.context() as context:
        context.setattr(logger.RunLogger, "step", stop)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 130
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run", "--resume")[0] == 0
    assert len(calls) == 2  # at the start and at the end
    lines = [line for line in read_metrics(empty_folder / "run" / "metrics.jsonl") if "top1" in line]
    assert [line["update"] for line in lines] == [0, 4]

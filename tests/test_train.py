"""The whole program: train, resume, interrupt, track, evaluate, predict, benchmark, report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import backend_for, equal_states, tiny_values
from PIL import Image
from safetensors.torch import load_file, save_file

from vit_ipu import cli
from vit_ipu.checkpoints.run_state import load_checkpoint, newest_checkpoint
from vit_ipu.metrics import read_metrics

AUGMENTED = {
    "model": {"dropout": 0.1, "drop_path": 0.1, "attention_dropout": 0.1},
    "data": {"crop": "random_resized", "horizontal_flip": 0.5},
    "optim": {"optimizer": "adamw", "learning_rate": 1e-3, "warmup_updates": 2},
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, name: str = "tiny", **sections) -> str:
    path = folder / "{}.yaml".format(name)
    path.write_text(yaml.safe_dump(tiny_values(**sections)))
    return str(path)


def vit_ipu(monkeypatch, capsys, *arguments):
    """Runs a command in this process: its exit code, and what it wrote."""
    monkeypatch.setattr(sys, "argv", ["vit-ipu", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


@pytest.fixture
def run(monkeypatch, capsys, workplace):
    def call(*arguments):
        code, out, err = vit_ipu(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out

    return call


# ------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize("device", ["cpu", "ipu-sim", pytest.param("ipu", marks=pytest.mark.ipus(4))])
def test_a_run_folder_holds_all_there_is_to_know(run, workplace, device):
    config = write_config(
        workplace, run={"updates": 6, "evaluate_every": 2, "checkpoint_every": 3, "keep_checkpoints": 1}
    )
    out = run("train", config, "--device", device)
    folder = workplace / "runs" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
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


def test_device_iterations_are_counted_in_updates_and_host_steps(run, workplace):
    config = write_config(
        workplace,
        pipeline={"device_iterations": 2},
        optim={"schedule": "linear", "learning_rate": 1.0e-3},
        run={"updates": 8, "log_every": 2},
    )
    run("train", config, "--device", "ipu-sim")
    steps = [x for x in read_metrics(workplace / "runs" / "tiny" / "metrics.jsonl") if "loss" in x]
    assert [(x["update"], x["host_step"], x["samples"]) for x in steps] == [(4, 2, 128), (8, 4, 256)]
    assert [x["learning_rate"] for x in steps] == pytest.approx([0.75e-3, 0.25e-3])


def test_train_prints_json_when_asked(run, workplace):
    summary = json.loads(run("train", write_config(workplace), "--device", "ipu-sim", "--json"))
    assert summary["simulated"] is True
    assert summary["update"] == summary["total_updates"] == 4
    assert summary["num_images"] == 50
    assert {"top1", "top5", "loss", "run", "seconds", "device", "samples"} <= set(summary)


def test_epochs_over_more_images_than_there_are(run, workplace):
    config = write_config(workplace, run={"updates": None, "epochs": 2.0})
    assert json.loads(run("train", config, "--device", "cpu", "--json"))["total_updates"] == 6  # 2 x 96 / 32


# ------------------------------------------------------------------------------------------ resume


def interrupted_after(monkeypatch, updates):
    """The run is stopped as by Ctrl-C in its `updates`-th host step."""
    from vit_ipu import train

    original, steps = train.Recorder.step, []

    def step(self, *args):
        original(self, *args)
        steps.append(1)
        if len(steps) == updates:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train.Recorder, "step", step)


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(monkeypatch, capsys, workplace, device, iterations):
    sections = dict(AUGMENTED, pipeline={"device_iterations": iterations}, run={"updates": 8, "evaluate_every": 2})
    config = write_config(workplace, **sections)
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "whole")[0] == 0

    with monkeypatch.context() as context:
        interrupted_after(context, 3 if iterations == 1 else 2)
        code, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "parts")
    assert code == 130
    assert "interrupted at update" in out
    torch.manual_seed(12345)  # whatever the process has drawn in between
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "parts", "--resume")[0] == 0

    whole, parts = (newest_checkpoint(workplace / name / "checkpoints") for name in ("whole", "parts"))
    assert whole.name == parts.name == "update-00000008"
    assert equal_states(load_checkpoint(whole, device_kind=device), load_checkpoint(parts, device_kind=device))
    losses = [
        [(x["update"], x["loss"]) for x in read_metrics(workplace / name / "metrics.jsonl") if "loss" in x]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_metrics_after_the_checkpoint_are_done_again(monkeypatch, capsys, workplace):
    """A crash, unlike Ctrl-C, loses what came after the last checkpoint, metrics included."""
    from vit_ipu import train

    config = write_config(workplace, run={"updates": 8, "checkpoint_every": 2})
    original = train.Recorder.step

    def crash(self, progress, *args):
        original(self, progress, *args)
        if progress.update == 5:
            raise MemoryError("out of memory")

    with monkeypatch.context() as context:
        context.setattr(train.Recorder, "step", crash)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")[0] == 1
    metrics = workplace / "runs" / "tiny" / "metrics.jsonl"
    assert [x["update"] for x in read_metrics(metrics)] == [1, 2, 3, 4, 5]
    metrics.write_text(metrics.read_text() + '{"update": 6, "lo')  # a line cut off
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert [x["update"] for x in read_metrics(metrics) if "loss" in x] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_finished_run_says_again_how_it_ended(monkeypatch, capsys, workplace):
    config = write_config(workplace)
    command = ["train", config, "--device", "cpu", "--json"]
    code, out, _ = vit_ipu(monkeypatch, capsys, *command)
    before = (workplace / "runs" / "tiny" / "metrics.jsonl").read_text()
    code, again, _ = vit_ipu(monkeypatch, capsys, *command, "--resume")
    assert code == 0
    assert {**json.loads(again), "seconds": 0} == {**json.loads(out), "seconds": 0}
    assert (workplace / "runs" / "tiny" / "metrics.jsonl").read_text() == before


def test_a_resumed_run_says_where_it_goes_on(monkeypatch, capsys, workplace):
    config = write_config(workplace, run={"updates": 6})
    with monkeypatch.context() as context:
        interrupted_after(context, 3)
        _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--set", "data.num_workers=0")
    hint = "go on with: vit-ipu train {} --device cpu --set data.num_workers=0 --output runs/tiny --resume\n"
    assert hint.format(config) in out
    _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")
    assert "going on at update 3" in out
    for path in (workplace / "runs" / "tiny" / "checkpoints").iterdir():
        (path / "state.json").unlink()
    _, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")
    assert "going on at update 0" in out


def test_a_resumed_run_keeps_the_environment_of_its_beginning(monkeypatch, capsys, workplace):
    config = write_config(workplace)
    path = workplace / "runs" / "tiny" / "environment.json"
    vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim")
    first = json.loads(path.read_text())
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume", "--output", "runs/tiny")[0] == 2
    assert json.loads(path.read_text()) == first  # a refused resume writes nothing
    vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim", "--resume")
    resumed = json.loads(path.read_text())
    assert [facts["device"] for facts in resumed.pop("resumed")] == ["ipu-sim"]
    assert resumed == first


def test_one_process_at_a_time_trains_in_a_folder(monkeypatch, capsys, workplace):
    from vit_ipu.config_file import load_config
    from vit_ipu.run_folder import RunFolder

    config = write_config(workplace)
    other = RunFolder.create(Path("runs/tiny"), load_config(config))
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume", "--output", "runs/tiny")
    assert code == 2
    assert "another process is training in runs/tiny" in err
    del other


def test_nothing_in_a_folder_that_is_no_run_is_touched(monkeypatch, capsys, workplace):
    config = write_config(workplace)
    for name in ("environment.json", "metrics.jsonl", "checkpoints"):
        folder = workplace / "mine-{}".format(name)
        folder.mkdir()
        (folder / name).write_text("mine")
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", str(folder))
        assert code == 2
        assert "already holds {}".format(name) in err
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, "mine")]


def break_an_image(folder: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index in range(40):
                Image.new("RGB", (30, 30), (index, 5, 9)).save(str(folder / split / label / "{:02d}.png".format(index)))
    (folder / "val" / "b" / "39.png").write_text("no image")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_learnt_is_kept_when_the_evaluation_fails(monkeypatch, capsys, workplace, workers):
    break_an_image(workplace / "images")
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None, "num_workers": workers}
    config = write_config(workplace, data=data, model={"num_classes": 2})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")
    assert code == 2
    assert re.fullmatch(r"vit-ipu: cannot read the image images/val/b/39.png: .*\n", err)
    assert newest_checkpoint(workplace / "runs" / "tiny" / "checkpoints").name == "update-00000004"
    Image.new("RGB", (30, 30)).save(str(workplace / "images" / "val" / "b" / "39.png"))
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert "top1" in read_metrics(workplace / "runs" / "tiny" / "metrics.jsonl")[-1]


def test_an_interrupted_evaluation_is_done_again_when_resumed(monkeypatch, capsys, workplace):
    from vit_ipu import train

    config = write_config(workplace)
    original = train.evaluation_loader

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    with monkeypatch.context() as context:
        context.setattr(train, "evaluation_loader", interrupted)
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")[0] == 130
    metrics = workplace / "runs" / "tiny" / "metrics.jsonl"
    assert "top1" not in read_metrics(metrics)[-1]
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--resume")[0] == 0
    assert "top1" in read_metrics(metrics)[-1]


def test_a_closed_stdout_does_not_stop_the_training(workplace):
    config = write_config(workplace, run={"updates": 4, "evaluate_every": 1})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    process.wait(timeout=120)
    assert newest_checkpoint(workplace / "run" / "checkpoints").name == "update-00000004"
    assert "Traceback" not in process.stderr.read()


def test_a_signal_to_the_whole_group_reaches_no_worker(workplace):
    config = write_config(workplace, run={"updates": 100000}, data={"num_workers": 1})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = workplace / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.count("stopping after this host step") == 1
    assert err == ""
    last = read_metrics(metrics)[-1]["update"]
    assert newest_checkpoint(workplace / "run" / "checkpoints").name == "update-{:08d}".format(last)


def test_runs_without_a_name_are_numbered(run, workplace):
    config = write_config(workplace)
    for _ in range(2):
        run("train", config, "--device", "cpu")
    assert sorted(p.name for p in (workplace / "runs").iterdir()) == ["tiny", "tiny-2"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_ends_with_a_checkpoint(workplace, number):
    config = write_config(workplace, run={"updates": 100000})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = workplace / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this host step" in out
    assert "--output run --resume" in out
    assert "Traceback" not in err
    last = read_metrics(metrics)[-1]["update"]
    assert newest_checkpoint(workplace / "run" / "checkpoints").name == "update-{:08d}".format(last)


def test_a_loss_that_is_no_number_fails_the_run(monkeypatch, capsys, workplace):
    config = write_config(workplace, optim={"learning_rate": 1e6, "momentum": 0.99}, run={"updates": 60})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu")
    assert code == 1
    assert re.fullmatch(r"vit-ipu: the loss is (nan|inf) at update \d+: lower optim.learning_rate .*\n", err)


def test_outputs_that_are_not_finite_fail_an_evaluation(run, monkeypatch, capsys, workplace):
    config = write_config(workplace)
    run("train", config, "--device", "cpu", "--output", "run")
    path = newest_checkpoint(workplace / "run" / "checkpoints") / "model.safetensors"
    weights = load_file(str(path))
    weights["norm.bias"][0] = float("nan")
    save_file(weights, str(path))
    image = str(next((workplace / "run" / "examples").glob("*.png")))
    for command in (["evaluate", config, "--checkpoint", "run"], ["predict", "run", image]):
        code, out, err = vit_ipu(monkeypatch, capsys, *command, "--device", "cpu", "--json")
        assert (code, out) == (1, "")
        assert "not finite: its weights are damaged, or have diverged" in err


def test_a_run_that_fails_at_once_leaves_no_folder_behind(monkeypatch, capsys, workplace):
    config = write_config(workplace, model={"init": "nowhere.safetensors"})
    (workplace / "mine").mkdir()
    (workplace / "mine" / "notes.txt").write_text("keep me")
    for output in ("new", "mine"):
        assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", output)[0] == 2
    assert not (workplace / "new").exists()
    assert [p.name for p in (workplace / "mine").iterdir()] == ["notes.txt"]


def test_fine_tuning_starts_from_another_runs_weights(run, workplace):
    run("train", write_config(workplace, "first"), "--device", "cpu")
    second = write_config(workplace, "second", run={"updates": 1}, optim={"learning_rate": 1e-12})
    run("train", second, "--device", "ipu-sim", "--set", "model.init=runs/first")
    first, second = (newest_checkpoint(workplace / "runs" / name / "checkpoints") for name in ("first", "second"))
    a, b = (load_checkpoint(p, device_kind=d)[0]["model"] for p, d in ((first, "cpu"), (second, "ipu-sim")))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-9)


# --------------------------------------------------------------------------------------- tracking


def test_tensorboard_gets_the_metrics(run, workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("train", write_config(workplace, run={"updates": 4, "tracking": "tensorboard"}), "--device", "cpu")
    events = EventAccumulator(str(workplace / "runs" / "tiny" / "tensorboard"))
    events.Reload()
    expected = [x for x in read_metrics(workplace / "runs" / "tiny" / "metrics.jsonl") if "loss" in x]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (x["update"], pytest.approx(x["loss"], rel=1e-5)) for x in expected
    ]
    assert len(events.Scalars("top1")) == 1


def test_wandb_runs_offline(run, workplace, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("train", write_config(workplace, run={"updates": 4, "tracking": "wandb"}), "--device", "cpu")
    logs = list((workplace / "runs" / "tiny" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    assert b"evaluation_loss" in logs[0].read_bytes()


# -------------------------------------------------------- evaluate, predict, benchmark, the others


@pytest.fixture
def trained(run, workplace):
    config = write_config(workplace, run={"updates": 30}, data={"num_train": 600})
    run("train", config, "--device", "cpu", "--output", "run")
    return config


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_evaluate_repeats_what_training_found(run, trained, workplace, device):
    last = read_metrics(workplace / "run" / "metrics.jsonl")[-1]
    found = json.loads(run("evaluate", trained, "--checkpoint", "run", "--device", device, "--json"))
    assert (found["top1"], found["top5"], found["num_images"]) == (last["top1"], last["top5"], 50)
    assert found["loss"] == pytest.approx(last["evaluation_loss"], rel=1e-5)
    assert found["simulated"] is (device == "ipu-sim")
    assert "top-1 {:.2f} %".format(last["top1"]) in run("evaluate", trained, "--checkpoint", "run", "--device", device)


def test_evaluation_notes_what_differs_from_training(run, trained):
    out = run("evaluate", trained, "--checkpoint", "run", "--set", "data.mean=[0.0,0.0,0.0]", "--set", "model.gelu=erf")
    assert "note: data.mean is (0.0, 0.0, 0.0), but the checkpoint was trained with (0.5, 0.5, 0.5)" in out
    assert "note: model.gelu is erf, but the checkpoint was trained with tanh" in out


def test_inference_is_not_held_to_the_rules_of_training(run, trained, workplace):
    """A batch too small for the pipeline to train, and a GELU that IPUs do not have."""
    few = ["--set", "pipeline.global_batch_size=8"]
    found = json.loads(run("evaluate", trained, "--checkpoint", "run", "--device", "ipu-sim", "--json", *few))
    assert found["num_images"] == 50
    config = write_config(workplace, "erf", model={"gelu": "erf"}, pipeline={"global_batch_size": 8})
    run("train", config, "--device", "cpu", "--output", "erf")
    image = str(next((workplace / "erf" / "examples").glob("*.png")))
    assert "%" in run("predict", "erf", image, "--device", "ipu-sim")


def test_evaluation_counts_what_it_should():
    from vit_ipu.backends import HostBatch
    from vit_ipu.evaluate import evaluate

    class Fixed:
        def predict(self, images):
            return images

    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 1]])
    batches = [HostBatch(logits[:2], torch.tensor([0, 1])), HostBatch(logits[2:], torch.tensor([6]))]
    found = evaluate(Fixed(), batches)
    assert (found.top1, found.top5, found.num_images) == (pytest.approx(200 / 3), pytest.approx(200 / 3), 3)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 6])).item()
    assert found.loss == pytest.approx(expected)


def test_predict_names_classes(run, trained, workplace):
    images = sorted((workplace / "run" / "examples").glob("*.png"))
    text = run("predict", "run", *images[:2])
    assert text.startswith(str(images[0]))
    assert len(re.findall(r"^ +\d+\.\d\d %  \S", text, re.M)) == 10
    found = json.loads(run("predict", "run", *images, "--device", "ipu-sim", "--json"))["predictions"]
    assert [p["image"] for p in found] == [str(path) for path in images]
    for prediction in found:
        probabilities = [c["probability"] for c in prediction["classes"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1 + 1e-6


def test_predictions_are_the_models(run, trained, workplace):
    from vit_ipu.config_file import load_config
    from vit_ipu.data.loader import stack_images
    from vit_ipu.data.sources import open_source
    from vit_ipu.data.transforms import EvalTransform

    config = load_config(trained)
    source = open_source(config.data, config.model, "eval")
    backend = backend_for(config, "cpu")
    backend.load_state_dict(load_checkpoint(newest_checkpoint(workplace / "run" / "checkpoints"), device_kind="cpu")[0])
    pixels = EvalTransform(config.data, 28)(source.image(0))
    expected = backend.predict(stack_images([pixels], config.data)).softmax(1)[0]
    image = sorted((workplace / "run" / "examples").glob("*.png"))[0]
    best = json.loads(run("predict", "run", image, "--device", "cpu", "--json"))["predictions"][0]["classes"][0]
    assert best["name"] == source.classes[int(expected.argmax())]
    assert best["probability"] == pytest.approx(expected.max().item(), rel=1e-4)


def test_a_run_in_an_ipus_number_format_is_predicted_on_a_cpu(run, workplace):
    config = write_config(workplace, precision={"compute": "float16"})
    run("train", config, "--device", "ipu-sim", "--output", "half")
    image = sorted((workplace / "half" / "examples").glob("*.png"))[0]
    assert "%" in run("predict", "half", image, "--device", "cpu")


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("more", [[], ["--real-data"]])
def test_benchmark_reports_images_a_second(run, workplace, device, more):
    config = write_config(workplace)
    command = ["benchmark", config, "--device", device, "--steps", "3", "--burn-in", "1", *more]
    found = json.loads(run(*command, "--json"))
    assert len(found["seconds"]) == 3
    assert found["samples_per_step"] == 32
    assert found["images_per_second"] == pytest.approx(32 / sorted(found["seconds"])[1])
    assert found["quartiles"][0] >= found["images_per_second"] >= found["quartiles"][1]
    assert found["simulated"] is (device == "ipu-sim")
    text = run(*command)
    assert ("simulated" if device == "ipu-sim" else "measured") in text


def test_compile_on_the_simulator_checks_poptorchs_rules(run, workplace):
    assert "rules hold" in run("compile", write_config(workplace), "--device", "ipu-sim", "--offline")
    assert json.loads(run("compile", write_config(workplace), "--device", "ipu-sim", "--json"))["simulated"] is True


def test_plan_shows_placement_and_arithmetic(run):
    text = run("plan", "mmcls_vit_base_patch16_finetune_224_ipu")
    assert "IPU 0: embed, blocks.0, blocks.1, blocks.2\n" in text
    assert "IPU 3: blocks.9, blocks.10, blocks.11, head\n" in text
    assert "16 IPUs = 4 a replica x 4 replicas" in text
    assert "global batch 2,176 = micro-batch 17 x accumulation 32 x replicas 4" in text
    assert "7 stages in training, 38 cycles an update" in text
    plan = json.loads(run("plan", "quickstart", "--json"))
    assert (plan["num_ipus"], plan["gradient_accumulation"], plan["violations"]) == (4, 8, [])
    assert "PopTorch would refuse: model.gelu erf" in run("plan", "quickstart", "--set", "model.gelu=erf")


def test_models_lists_variants_with_their_figures(run):
    rows = {row["variant"]: row for row in json.loads(run("models", "--json", "--image-size", "384"))["models"]}
    assert rows["vit_base_patch16"]["parameters"] == 86_859_496
    assert rows["vit_base_patch16"]["mmclassification"]["printed_flops_g"] == 33.03
    for name in ("vit_base_patch16", "vit_base_patch32", "vit_large_patch16"):
        printed = rows[name]["mmclassification"]
        assert round(printed["reproduced_parameters"] / 1e6, 2) == printed["printed_parameters_m"]
        assert round(printed["reproduced_flops"] / 1e9, 2) == printed["printed_flops_g"]
    text = run("models")
    assert re.search(r"vit_base_patch16 .* 86,567,656 +17\.56 +86\.86 M, 33\.03 G", text)


def test_report_is_one_page_with_curves_and_timetable(run, workplace):
    from xml.etree import ElementTree

    config = write_config(workplace, run={"updates": 4, "evaluate_every": 2})
    run("train", config, "--device", "ipu-sim", "--output", "run")
    (workplace / "run" / "report.html").unlink()
    assert run("report", "run").strip() == "run/report.html"
    page = (workplace / "run" / "report.html").read_text()
    assert "Simulated: no IPU was used" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(pictures) == 2
    for picture in pictures:
        ElementTree.fromstring(picture)
    timetable = pictures[1]
    assert timetable.count("<rect") == 2 * 4 * 8 + 2  # forward and backward of 8 micro-batches on 4 IPUs, legend
    last = read_metrics(workplace / "run" / "metrics.jsonl")[-1]
    assert "{:.2f} %, {:.2f} %".format(last["top1"], last["top5"]) in page


def test_a_long_update_is_drawn_in_part():
    from vit_ipu.report import timetable_svg

    picture = timetable_svg(4, 2048)
    assert "drawn for 18 of 2048" in picture
    assert picture.count("<rect") == 2 * 4 * 18 + 2

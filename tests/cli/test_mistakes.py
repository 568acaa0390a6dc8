"""Mistakes of a user at the command line: each gives one clear line on stderr and exit 2, and changes no file."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_values, vit_ipu, write_config
from PIL import Image

TRAIN = ["train", "tiny.yaml", "--device", "cpu"]
SIM = ["train", "tiny.yaml", "--device", "ipu-sim"]


def with_set(*settings):
    return [*TRAIN, *[argument for setting in settings for argument in ("--set", setting)]]


# Every mistake: a function that prepares the folder, the command, and the texts that its line must contain.
MISTAKES = {
    "no such command": (None, ["tran"], ["tran", "train"]),
    "no config": (None, ["train"], ["CONFIG"]),
    "unknown flag": (None, [*TRAIN, "--batch", "3"], ["--batch"]),
    "config that is not there": (None, ["train", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    "config that is a folder": (lambda p: (p / "folder").mkdir(), ["train", "folder"], ["folder", "directory"]),
    "config that is not YAML": (lambda p: (p / "bad.yaml").write_text("a: ["), ["train", "bad.yaml"], ["line 1"]),
    "config that is a picture": (
        lambda p: Image.new("RGB", (2, 2)).save(str(p / "bad.png")),
        ["train", "bad.png"],
        ["bad.png", "not a text file"],
    ),
    "unknown section": (None, with_set("optimiser.learning_rate=1"), ["optimiser", "'optim'"]),
    "unknown key": (None, with_set("optim.lr=1.0"), ["optim.lr", "unknown key"]),
    "misspelt key": (None, with_set("model.drop_out=0.1"), ["model.drop_out", "'dropout'"]),
    "wrong type": (None, with_set("run.updates=many"), ["run.updates", "many"]),
    "set without value": (None, with_set("run.updates"), ["section.key=value"]),
    "batch that does not divide": (None, with_set("pipeline.global_batch_size=33"), ["33", "4", "32 or 36"]),
    "layers that do not sum": (None, with_set("pipeline.layers_per_ipu=[1,1]"), ["sums to 2", "depth is 4"]),
    "too few micro-batches": (
        None,
        [*SIM, "--set", "pipeline.global_batch_size=8"],
        ["accumulation is 2", "7 stages", "28"],
    ),
    "not a power of two": (None, [*SIM, "--set", "pipeline.layers_per_ipu=[2,1,1]"], ["3 IPUs", "power of two"]),
    "bfloat16 on an IPU": (None, [*SIM, "--set", "precision.compute=bfloat16"], ["bfloat16", "float16"]),
    "erf GELU on an IPU": (None, [*SIM, "--set", "model.gelu=erf"], ["erf", "model.gelu: tanh"]),
    "small eps on an IPU": (None, [*SIM, "--set", "model.layer_norm_eps=1e-12"], ["1e-12", "1e-6"]),
    "clipping with SGD on an IPU": (None, [*SIM, "--set", "optim.max_grad_norm=1.0"], ["sgd", "velocity"]),
    "float16 on a CPU": (None, with_set("precision.compute=float16"), ["float16 is for IPUs", "auto"]),
    "unknown variant": (None, with_set("model.variant=vit_giant"), ["vit_giant"]),
    "wrong number of classes": (None, with_set("model.num_classes=1000"), ["1000", "sample", "10"]),
    "device that does not exist": (None, ["train", "tiny.yaml", "--device", "gpu"], ["gpu", "cuda"]),
    "IPU without PopTorch": (None, ["train", "tiny.yaml", "--device", "ipu"], ["PopTorch", "ipu-sim"]),
    "numerics of a CPU": (None, [*TRAIN, "--numerics", "ipu"], ["--numerics ipu", "device is cpu", "--device ipu-sim"]),
    "numerics of auto": (None, ["train", "tiny.yaml", "--numerics", "ipu"], ["--numerics ipu", "--device ipu-sim"]),
    "numerics of IPUs to compile for": (
        None,
        ["compile", "tiny.yaml", "--numerics", "exact"],
        ["--numerics exact", "device is ipu:", "--device ipu-sim"],
    ),
    "unknown numerics": (None, [*SIM, "--numerics", "half"], ["--numerics half", "exact, ipu"]),
    "numerics of an evaluation": (
        None,
        ["evaluate", "tiny.yaml", "--checkpoint", "run", "--device", "cpu", "--numerics", "ipu"],
        ["--numerics ipu", "device is cpu"],
    ),
    "numerics of a benchmark": (
        None,
        ["benchmark", "tiny.yaml", "--device", "cpu", "--numerics", "ipu"],
        ["--numerics ipu", "device is cpu"],
    ),
    "numerics of a prediction": (
        None,
        ["predict", "run", "x.png", "--device", "cpu", "--numerics", "ipu"],
        ["--numerics ipu", "device is cpu"],
    ),
    "CUDA without a GPU": (None, ["train", "tiny.yaml", "--device", "cuda"], ["CUDA", "cpu"]),
    "image folder without a path": (None, with_set("data.source=imagefolder"), ["data.path"]),
    "image folder that is not there": (
        None,
        with_set("data.source=imagefolder", "data.path=nowhere"),
        ["nowhere", "not a folder"],
    ),
    "image folder without classes": (
        lambda p: (p / "images" / "train").mkdir(parents=True),
        with_set("data.source=imagefolder", "data.path=images"),
        ["class folders", "images/train"],
    ),
    "CIFAR-10 that is not there": (
        lambda p: (p / "cifar").mkdir(),
        with_set("data.source=cifar10", "data.path=cifar"),
        ["CIFAR10", "cifar-10-batches-py", "data.download"],
    ),
    "weights that are not there": (None, with_set("model.init=nowhere.safetensors"), ["nowhere.safetensors"]),
    "weights that are a pickle": (
        lambda p: torch.save({}, str(p / "w.pth")),
        [*with_set("model.init=w.pth"), "--trust-pickle"],
        ["w.pth", "it holds no tensors"],
    ),
    "resume without a run": (None, [*TRAIN, "--resume", "--output", "nowhere"], ["nowhere", "without --resume"]),
    "output that cannot be written": (
        lambda p: (p / "file").write_text(""),
        [*TRAIN, "--output", "file/run"],
        ["file/run"],
    ),
    "evaluate without a checkpoint": (None, ["evaluate", "tiny.yaml"], ["--checkpoint"]),
    "checkpoint that is not there": (None, ["evaluate", "tiny.yaml", "--checkpoint", "nowhere"], ["nowhere"]),
    "predict from a run that is not there": (None, ["predict", "nowhere", "image.png"], ["nowhere", "no checkpoint"]),
    "predict without images": (None, ["predict", "run"], ["IMAGE"]),
    "compile for a CPU": (None, ["compile", "tiny.yaml", "--device", "cpu"], ["cpu", "ipu-sim"]),
    "benchmark of no steps": (None, ["benchmark", "tiny.yaml", "--steps", "0"], ["--steps", "1"]),
    "report without a run": (lambda p: (p / "empty").mkdir(), ["report", "empty"], ["empty", "not a run folder"]),
    "models at a negative size": (None, ["models", "--image-size", "-1"], ["--image-size", "1"]),
    "plan of a config that is not there": (None, ["plan", "nowhere.yaml"], ["nowhere.yaml"]),
    "training on synthetic data": (None, with_set("pipeline.synthetic_data=true"), ["synthetic_data", "benchmark"]),
    "several processes": (None, TRAIN, ["WORLD_SIZE is 2, but RANK is not set", "torchrun"]),
}


def files_below(folder: Path):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistake_gives_one_line_and_exit_2(monkeypatch, capsys, tmp_path, name):
    prepare, command, expected = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "poptorch", raising=False)
    if name == "several processes":
        monkeypatch.setenv("WORLD_SIZE", "2")
    write_config(tmp_path)
    if prepare is not None:
        prepare(tmp_path)
    before = files_below(tmp_path)
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2, (out, err)
    assert err.startswith("vit-ipu: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    for text in expected:
        assert text in err
    assert files_below(tmp_path) == before


def test_there_are_enough_kinds_of_mistakes():
    assert len(MISTAKES) >= 25


def trained_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    assert vit_ipu(monkeypatch, capsys, *TRAIN, "--output", "run")[0] == 0


AFTER_A_RUN = {
    "output that holds a run": ([*TRAIN, "--output", "run"], ["run already holds a run", "--resume"]),
    "resume with another config": (
        [*TRAIN, "--output", "run", "--resume", "--set", "optim.learning_rate=1.0"],
        ["optim.learning_rate 0.05, not 1.0", "same config"],
    ),
    "resume on another device": ([*SIM, "--output", "run", "--resume"], ["made on cpu", "--device cpu"]),
    "resume on other images": (
        [*TRAIN, "--output", "run", "--resume", "--set", "run.updates=4", "--set", "data.num_train=95"],
        ["data.num_train 96, not 95"],
    ),
    "evaluate with another number of heads": (
        ["evaluate", "tiny.yaml", "--checkpoint", "run", "--device", "cpu", "--set", "model.num_heads=4"],
        ["model.num_heads 2", "4"],
    ),
    "image that is not there": (["predict", "run", "nowhere.png"], ["nowhere.png"]),
    "file that is not an image": (["predict", "run", "tiny.yaml"], ["cannot read the image tiny.yaml"]),
    "checkpoint of another model": (
        ["evaluate", "tiny.yaml", "--checkpoint", "run", "--device", "cpu", "--set", "model.width=64"],
        ["of another model", "(1, 1, 32)", "(1, 1, 64)"],
    ),
}


@pytest.mark.parametrize("name", list(AFTER_A_RUN))
def test_mistake_after_a_run_gives_one_line_and_exit_2(monkeypatch, capsys, tmp_path, name):
    trained_run(monkeypatch, capsys, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command, expected = AFTER_A_RUN[name]
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2, (out, err)
    assert err.startswith("vit-ipu: ")
    assert err.count("\n") == 1
    for text in expected:
        assert text in err
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert [path.name for path in changed] == []


DAMAGED_RUNS = {
    "environment cut off": (lambda p: (p / "environment.json").write_text('{"simul'), "environment.json is damaged"),
    "environment of another program": (
        lambda p: (p / "environment.json").write_text("{}"),
        "environment.json is damaged",
    ),
    "no environment": (lambda p: (p / "environment.json").unlink(), "not a run folder"),
    "no config": (lambda p: (p / "config.yaml").unlink(), "config.yaml"),
    "report that is a folder": (lambda p: ((p / "report.html").unlink(), (p / "report.html").mkdir()), "report.html"),
}


@pytest.mark.parametrize("name", list(DAMAGED_RUNS))
def test_report_of_a_damaged_run_is_one_line(monkeypatch, capsys, tmp_path, name):
    trained_run(monkeypatch, capsys, tmp_path)
    damage, expected = DAMAGED_RUNS[name]
    damage(tmp_path / "run")
    code, _, err = vit_ipu(monkeypatch, capsys, "report", "run")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1, 2]\n", b'{"loss": 1.0}\n', b'{"update": "a"}\n'])
def test_metrics_are_read_up_to_the_damage(monkeypatch, capsys, tmp_path, line):
    trained_run(monkeypatch, capsys, tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes() + line)
    assert vit_ipu(monkeypatch, capsys, "report", "run")[0] == 0
    assert vit_ipu(monkeypatch, capsys, *TRAIN, "--output", "run", "--resume")[0] == 0


@pytest.mark.parametrize(
    "command",
    [
        ["train", "x" * 300, "--device", "cpu"],
        [*TRAIN, "--output", "x" * 300],
        ["evaluate", "tiny.yaml", "--checkpoint", "x" * 300],
        ["report", "x" * 300],
    ],
)
def test_names_that_are_too_long_are_refused(monkeypatch, capsys, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    code, _, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2
    assert "File name too long" in err or "no checkpoint" in err or "not a run folder" in err
    assert err.count("\n") == 1


def test_paths_that_look_like_markup_are_printed_unchanged(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    assert vit_ipu(monkeypatch, capsys, *TRAIN, "--output", "[red]a/[/b] c")[0] == 0
    code, out, _ = vit_ipu(
        monkeypatch, capsys, "evaluate", "tiny.yaml", "--checkpoint", "[red]a/[/b] c", "--device", "cpu"
    )
    assert code == 0
    assert "[red]a/[/b] c/checkpoints/update-00000004" in out


def test_no_command_shows_the_help(monkeypatch, capsys):
    code, out, err = vit_ipu(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "Commands:" in out


def test_resume_may_change_settings_that_do_not_affect_the_results(monkeypatch, capsys, tmp_path):
    trained_run(monkeypatch, capsys, tmp_path)
    command = [*TRAIN, "--output", "run", "--resume", "--set", "data.num_workers=1", "--set", "run.keep_checkpoints=5"]
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 0


def test_tracking_without_its_package_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, err = vit_ipu(monkeypatch, capsys, *with_set("run.tracking=wandb"))
    assert (code, err) == (2, "vit-ipu: run.tracking wandb needs a package: pip install 'vit-ipu[tracking]'\n")


def test_a_real_process_shows_no_traceback_unless_debugged(tmp_path):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tiny_values(model={"image_size": 29})))
    command = [sys.executable, "-m", "vit_ipu", "train", "bad.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("vit-ipu: bad.yaml: model: image_size 29 is not a multiple of patch_size 7: use 28 or 35\n")
    debugged = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=str(tmp_path), check=False)
    assert "Traceback" in debugged.stderr


def test_a_bug_of_the_program_is_one_line_and_exit_1(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    monkeypatch.setattr(import_module("vit_ipu.plan"), "describe_plan", lambda *arguments: json.loads("{"))
    code, _, err = vit_ipu(monkeypatch, capsys, "plan", "tiny.yaml")
    assert code == 1
    assert err.startswith("vit-ipu: JSONDecodeError: ")
    assert err.endswith("(--debug shows where)\n")


@pytest.mark.parametrize("device", ["ipu", "auto"])
def test_the_simulator_is_never_used_as_hardware(tmp_path, device):
    write_config(tmp_path, run={"updates": 1})
    command = [sys.executable, "-m", "vit_ipu.simulator", "-m", "vit_ipu", "train", "tiny.yaml", "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), check=False)
    if device == "ipu":
        assert done.returncode == 2
        assert "the simulator, not hardware" in done.stderr
    else:
        assert done.returncode == 0
        environment = json.loads((tmp_path / "runs" / "tiny" / "environment.json").read_text())
        assert environment["device"] in ("cpu", "cuda")
        assert environment["simulated"] is False

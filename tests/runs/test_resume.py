"""Runs that are interrupted and resumed: bit for bit equal to uninterrupted runs, with the numerics they began with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import equal_states, interrupted_after, vit_ipu, write_config
from small_runs import metrics_without_times

from vit_ipu.backends.contract import Instances
from vit_ipu.errors import RunFailed
from vit_ipu.files import write_checksums
from vit_ipu.runs.checkpoint import Progress, load_checkpoint
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.simulator import numerics
from vit_ipu.train import require_agreement
from vit_ipu.weights.native import newest_checkpoint

AUGMENTED = {
    "model": {"dropout": 0.1, "drop_path": 0.1, "attention_dropout": 0.1},
    "data": {
        "crop": "random_resized",
        "horizontal_flip": 0.5,
        "auto_augment": "imagenet",
        "random_erasing": 0.3,
        "mixup_alpha": 0.4,
        "cutmix_alpha": 1.0,
    },
    "optim": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "warmup_updates": 2,
        "ema_decay": 0.8,
        "freeze": ["embed"],
        "layer_decay": 0.8,
    },
}


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(monkeypatch, capsys, empty_folder, device, iterations):
    sections = dict(AUGMENTED, pipeline={"device_iterations": iterations}, run={"updates": 8, "evaluate_every": 2})
    config = write_config(empty_folder, **sections)
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "whole")[0] == 0

    with monkeypatch.context() as context:
        interrupted_after(context, 3 if iterations == 1 else 2)
        code, out, _ = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "parts")
    assert code == 130
    assert "interrupted at update" in out
    torch.manual_seed(12345)  # random numbers that the process draws in between do not matter
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "parts", "--resume")[0] == 0

    whole, parts = (newest_checkpoint(empty_folder / name / "checkpoints") for name in ("whole", "parts"))
    assert whole.name == parts.name == "update-00000008"
    assert equal_states(load_checkpoint(whole, device_kind=device), load_checkpoint(parts, device_kind=device))
    losses = [
        [(x["update"], x["loss"]) for x in read_metrics(empty_folder / name / "metrics.jsonl") if "loss" in x]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_resumed_float16_run_keeps_what_exact_numerics_do_not_round(monkeypatch, capsys, empty_folder):
    config = write_config(
        empty_folder,
        pipeline={"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
        precision={"compute": "float16"},
        optim={"optimizer": "adamw", "learning_rate": 1e-3},
        run={"updates": 4, "checkpoint_every": 2, "evaluate_every": 2},
    )
    command = ["train", config, "--device", "ipu-sim", "--output", "run"]
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
    last = empty_folder / "run" / "checkpoints" / "update-00000004"
    whole, metrics = load_checkpoint(last, device_kind="ipu-sim"), read_metrics(empty_folder / "run" / "metrics.jsonl")
    shutil.rmtree(str(last))
    code, _, err = vit_ipu(monkeypatch, capsys, *command, "--resume")
    assert code == 0, err
    assert equal_states(whole, load_checkpoint(last, device_kind="ipu-sim"))
    again = read_metrics(empty_folder / "run" / "metrics.jsonl")
    assert [line.get("loss") for line in again] == [line.get("loss") for line in metrics]
    assert whole[0]["model"]["head.weight"].dtype == torch.float16


def test_a_job_that_is_started_again_trains_whether_the_signal_came_during_the_start_or_later(
    monkeypatch, capsys, empty_folder
):
    train = import_module("vit_ipu.train")

    config = write_config(empty_folder, run={"updates": 2})
    command = ["train", config, "--device", "cpu", "--output", "runs/mine"]
    with monkeypatch.context() as context:
        context.setattr(train, "start", lambda *args, **options: os.kill(os.getpid(), signal.SIGUSR1))
        assert vit_ipu(monkeypatch, capsys, *command)[0] == 75
    assert not (empty_folder / "runs" / "mine").exists()
    text = (Path(__file__).parents[2] / "docs" / "running_on_ipu.md").read_text()
    line = re.search(r"^\$ (vit-ipu train CONFIG .* echo --resume\))$", text, re.M)[1]
    line = line.replace("vit-ipu", f"{sys.executable} -m vit_ipu").replace("CONFIG", f"{config} --device cpu")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    for _ in ("without a run", "with a run"):
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert newest_checkpoint(empty_folder / "runs" / "mine" / "checkpoints").name == "update-00000002"


@pytest.mark.parametrize("mode", ["exact", "ipu"])
def test_a_resumed_run_keeps_the_automatic_loss_scale(monkeypatch, capsys, empty_folder, mode):
    config = write_config(
        empty_folder,
        pipeline={"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
        precision={
            "compute": "float16",
            "accumulation": "float16",
            "stochastic_rounding": True,
            "automatic_loss_scale": True,
            "loss_scale": 1024.0,
        },
        optim={"optimizer": "adamw", "learning_rate": 1e-3},
        run={"updates": 10, "checkpoint_every": 5, "evaluate_every": 5},
    )
    command = ["train", config, "--device", "ipu-sim", "--output", "run"]
    with numerics(mode):
        assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
    middle, last = (empty_folder / "run" / "checkpoints" / f"update-{update:08d}" for update in (5, 10))
    whole, metrics = (
        load_checkpoint(last, device_kind="ipu-sim", numerics=mode),
        metrics_without_times(empty_folder / "run"),
    )
    factors = [
        float(state["optimizer"]["ipu_state"]["lossScaleUpdateFactor"])
        for state, _ in (load_checkpoint(path, device_kind="ipu-sim", numerics=mode) for path in (middle, last))
    ]
    assert 1.0 not in factors
    assert factors[0] != factors[1]
    shutil.rmtree(str(last))
    with numerics(mode):
        code, _, err = vit_ipu(monkeypatch, capsys, *command, "--resume")
    assert code == 0, err
    assert equal_states(whole, load_checkpoint(last, device_kind="ipu-sim", numerics=mode))
    assert metrics_without_times(empty_folder / "run") == metrics


def test_neither_checkpoints_nor_evaluations_nor_a_resume_change_stochastic_rounding(monkeypatch, capsys, empty_folder):
    precision = {"compute": "float16", "stochastic_rounding": True}
    ends = []
    for name, run in (("plain", {}), ("often", {"checkpoint_every": 2, "evaluate_every": 2})):
        sections = dict(AUGMENTED, precision=precision, run=dict(run, updates=6))
        config = write_config(empty_folder, name=name, **sections)
        command = ["train", config, "--device", "ipu-sim", "--numerics", "ipu", "--output", name]
        assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
        ends.append(load_ipu_numerics(empty_folder / name))
    shutil.rmtree(str(empty_folder / "often" / "checkpoints" / "update-00000006"))
    command = ["train", "often.yaml", "--device", "ipu-sim", "--numerics", "ipu", "--output", "often", "--resume"]
    code, _, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 0, err
    ends.append(load_ipu_numerics(empty_folder / "often"))
    assert equal_states(ends[0], ends[1])
    assert equal_states(ends[0], ends[2])


def load_ipu_numerics(run):
    return load_checkpoint(newest_checkpoint(run / "checkpoints"), device_kind="ipu-sim", numerics="ipu")


@pytest.mark.parametrize(("before", "now"), [("exact", "ipu"), ("ipu", "exact"), ("ipu", None), ("none", "ipu")])
def test_a_resume_with_other_numerics_is_refused(monkeypatch, capsys, empty_folder, before, now):
    """A checkpoint of an earlier version states none, which means exact."""
    config = write_config(empty_folder, run={"updates": 2})
    command = ["train", config, "--device", "ipu-sim", "--output", "run"]
    made_with = "exact" if before == "none" else before
    assert vit_ipu(monkeypatch, capsys, *command, "--numerics", made_with)[0] == 0
    checkpoint = newest_checkpoint(empty_folder / "run" / "checkpoints")
    if before == "none":
        state = json.loads((checkpoint / "state.json").read_text())
        assert state.pop("numerics") == "exact"
        (checkpoint / "state.json").write_text(json.dumps(state))
        write_checksums(checkpoint)
    code, _, err = vit_ipu(monkeypatch, capsys, *command, "--resume", *(["--numerics", now] if now else []))
    assert code == 2
    assert err == (
        f"vit-ipu: run/checkpoints/update-00000002 was made with --numerics {made_with} and cannot be resumed with "
        f"--numerics {now or 'exact'}: resume with --numerics {made_with}, or start a new run with --set "
        "model.init=run/checkpoints/update-00000002\n"
    )
    assert vit_ipu(monkeypatch, capsys, *command, "--resume", "--numerics", made_with)[0] == 0


@pytest.mark.parametrize("from_launcher", [False, True])
def test_the_command_to_continue_has_the_numerics(monkeypatch, capsys, empty_folder, from_launcher):
    config = write_config(empty_folder)
    given = [] if from_launcher else ["--numerics", "ipu"]
    command = ["train", config, "--device", "ipu-sim", "--output", "run", *given]
    with monkeypatch.context() as context, numerics("ipu") if from_launcher else nullcontext():
        interrupted_after(context, 2)
        code, out, _ = vit_ipu(monkeypatch, capsys, *command)
    assert code == 130
    options = "--device ipu-sim --output run --numerics ipu --resume"
    assert f"continue with: vit-ipu train {config} {options}" in " ".join(out.split())
    code, out, err = vit_ipu(monkeypatch, capsys, "train", config, *options.split())
    assert code == 0, err
    assert "resuming at update 2" in out


@pytest.mark.parametrize(("mean", "agree"), [(4.0, True), (3.0, False), (5.0, False)])
def test_all_processes_must_resume_at_the_same_update(tmp_path, mean, agree):
    """`mean` is the mean over two processes, of which this one is at update 4."""

    def mean_over_both(tensor):
        return torch.full_like(tensor, mean) if tensor.item() == 4 else tensor

    progress, folder = Progress(update=4, host_step=4, samples=128), RunFolder(tmp_path)
    with (
        nullcontext()
        if agree
        else pytest.raises(
            RunFailed,
            match="this host process resumes at update 4 and another one elsewhere: make the same checkpoints",
        )
    ):
        require_agreement(Instances(mean=mean_over_both), progress, folder)

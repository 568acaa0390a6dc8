"""Runs that are interrupted and resumed: bit for bit equal to uninterrupted runs, with nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import equal_states, interrupted_after, vit_ipu, write_config
from PIL import Image
from small_runs import metrics_without_times, small_config, train_in

from vit_ipu.backends.contract import Instances
from vit_ipu.config_file import load_config
from vit_ipu.errors import RunFailed
from vit_ipu.files import write_checksums
from vit_ipu.runs import logger
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

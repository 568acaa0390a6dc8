"""Runs that diverge: they stop, name the batch, and keep a checkpoint from before the explosion."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import tiny_config, vit_ipu, write_config, write_image_folder
from small_runs import metrics_without_times, names_in

from vit_ipu.backends.contract import StepResult
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.data.loading.order import TrainingStream
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import Evaluation
from vit_ipu.runs import logger
from vit_ipu.runs.divergence import problem_of_loss, problem_of_state
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.native import checkpoints_in

train = import_module("vit_ipu.train")


@pytest.fixture
def explode_after(monkeypatch):
    """Sets a learning rate that explodes the weights in the fourth update."""

    def rate(update, total, optim):
        return 0.05 if update < 3 else 1e6

    monkeypatch.setattr(train, "learning_rate", rate)


GUESS = math.log(10)
LIMIT = 10 * GUESS


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ((2.3,), None),
        ((LIMIT,), None),
        ((2.0, LIMIT - 0.01), None),
        ((2.0, LIMIT + 0.01), "the loss is 23.04, above run.max_loss_factor 10 times 2.303, the loss of a guess among"),
        ((float("nan"),), "the loss is nan"),
        ((1.0, float("inf")), "the loss is inf"),
    ],
)
def test_a_loss_must_be_finite_and_at_most_ten_times_that_of_a_guess(losses, problem):
    found = problem_of_loss(StepResult(losses, sum(losses) / len(losses), 4), tiny_config(), GUESS)
    assert found is None if problem is None else found.startswith(problem)


def test_the_factor_can_be_changed_and_left_out():
    result = StepResult((5.0,), 5.0, 4)
    assert problem_of_loss(result, tiny_config(run={"max_loss_factor": 2.0}), GUESS) is not None
    assert problem_of_loss(result, tiny_config(run={"max_loss_factor": None}), GUESS) is None
    huge = StepResult((1e30,), 1e30, 4)
    assert problem_of_loss(huge, tiny_config(run={"max_loss_factor": None}), GUESS) is None


def test_weights_are_finite_even_if_their_sum_is_not():
    largest = torch.full((3,), torch.finfo(torch.float32).max)
    weights = {"x": largest, "y": largest.double() * 3, "z": torch.ones(70000).half()}
    assert problem_of_state({"model": weights, "optimizer": {}}) is None
    for value in (float("nan"), float("inf"), -float("inf")):
        state = {"model": {"x": torch.cat([largest, torch.tensor([value])])}, "optimizer": {}}
        assert problem_of_state(state) == "x is not finite"


def test_a_state_must_be_finite():
    fine, bad = torch.zeros(3), torch.tensor([0.0, float("inf")])
    assert problem_of_state({"model": {"a": fine}, "optimizer": {"a": {"step": 3, "exp_avg": fine}}}) is None
    assert problem_of_state({"model": {"a": fine, "b": bad}, "optimizer": {}}) == "b is not finite"
    assert problem_of_state({"model": {"a": fine}, "optimizer": {"a": {"exp_avg": bad}}}) == (
        "the optimizer's state a/exp_avg is not finite, so a gradient was not"
    )


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_a_diverged_run_names_its_batch_and_continues_from_before(
    monkeypatch, capsys, empty_folder, device, explode_after
):
    write_image_folder(empty_folder / "images", count=20)
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None}
    run = {"updates": 8, "checkpoint_every": 1, "keep_checkpoints": 3}
    config = write_config(empty_folder, run=run, data=data, model={"num_classes": 2})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "run")
    assert code == 1
    assert re.fullmatch(
        r"vit-ipu: the loss is \S+, above run.max_loss_factor 10 times 0.6931, the loss of a guess among 2 classes at "
        r"update 5: lower optim.learning_rate or precision.loss_scale; the learning rate was 1e\+06; the last "
        r"checkpoint from before is run/checkpoints/update-00000003 \(diverged-update-00000004 came after the "
        r"explosion\); the samples are in run/diverged.json\n",
        err,
    )
    checkpoints = empty_folder / "run" / "checkpoints"
    assert names_in(checkpoints) == ["diverged-update-00000004", "update-00000002", "update-00000003"]

    facts = json.loads((empty_folder / "run" / "diverged.json").read_text())
    assert (facts["update"], facts["host_step"], facts["learning_rate"]) == (5, 5, 1e6)
    assert facts["last_good_checkpoint"] == "run/checkpoints/update-00000003"
    assert facts["set_aside"] == ["run/checkpoints/diverged-update-00000004"]
    loaded = tiny_config(run=run, data=data, model={"num_classes": 2})
    source = open_source(loaded.data, loaded.model, "train")
    expected = TrainingStream(40, 42).at(range(4 * 32, 5 * 32))
    assert facts["samples"] == [[epoch, index, source.paths[index]] for epoch, index in expected]

    monkeypatch.undo()  # the learning rate of the config
    monkeypatch.chdir(empty_folder)
    code, out, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", "run", "--resume")
    assert code == 0, err
    assert "resuming at update 3" in out


def test_the_best_checkpoint_is_never_one_from_after_the_explosion(monkeypatch, capsys, empty_folder, explode_after):
    run = {"updates": 8, "checkpoint_every": 1, "evaluate_every": 1, "keep_checkpoints": 4, "keep_best": "top1"}
    config = write_config(empty_folder, run=run)
    rising = iter(range(1, 100))
    monkeypatch.setattr(logger, "evaluate_batches", lambda *_, **__: Evaluation(next(rising), 50.0, 1.0, 64))
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 1
    assert names_in(empty_folder / "run" / "checkpoints")[0].startswith("diverged-")
    best = json.loads((empty_folder / "run" / "best.json").read_text())
    assert (empty_folder / "run" / best["checkpoint"]).is_dir()


def test_weights_and_gradients_that_are_not_finite_are_no_checkpoint(monkeypatch, capsys, empty_folder):
    original = NativeBackend.state_dict

    def damaged(self):
        state = original(self)
        state["optimizer"]["head.bias"]["momentum_buffer"][0] = float("nan")
        return state

    monkeypatch.setattr(NativeBackend, "state_dict", damaged)
    config = write_config(empty_folder, run={"updates": 4, "checkpoint_every": 2})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    assert code == 1
    assert err.startswith(
        "vit-ipu: the optimizer's state head.bias/momentum_buffer is not finite, so a gradient was not at update 2: "
    )
    assert "the last checkpoint from before is none; the samples are in run/diverged.json" in err
    assert checkpoints_in(empty_folder / "run" / "checkpoints") == []
    assert len(json.loads((empty_folder / "run" / "diverged.json").read_text())["samples"]) == 32


@pytest.mark.parametrize("mode", ["exact", "ipu"])
@pytest.mark.parametrize(("loss_scale", "warns"), [(1.0, False), (1e9, True)])
def test_a_float16_overflow_of_the_simulated_ipu_is_told(monkeypatch, capsys, empty_folder, mode, loss_scale, warns):
    precision = {"compute": "float16", "loss_scale": loss_scale}
    config = write_config(empty_folder, run={"updates": 3}, precision=precision)
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim", "--numerics", mode)
    assert code == 0, err
    assert err.count("float16 overflow: ") == warns
    if warns:
        assert re.search(r"elements of the gradient of \S+ reach 65504, where an IPU clips them: lower the loss", err)


def overflowing_run(monkeypatch, capsys, loss_scale, *options, optimizer="sgd", **run):
    """Trains in an IPU's float16 into `run`; returns stdout, and all that the command told, in one line."""
    precision = {"compute": "float16", "stochastic_rounding": True, "loss_scale": loss_scale}
    optim = {"optimizer": optimizer, "learning_rate": 0.05 if optimizer == "sgd" else 1e-3}
    pipeline = {"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]}
    run = {"updates": 6, **run}
    config = write_config(Path(), run=run, precision=precision, optim=optim, pipeline=pipeline)
    command = ["train", config, "--device", "ipu-sim", "--numerics", "ipu", "--output", "run", *options]
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code in (0, 130), err
    return out, " ".join((out + err).split())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_overflows_of_a_bad_loss_scale_are_counted_and_told(monkeypatch, capsys, empty_folder, optimizer):
    """65536 shows with SGD, and also with AdamW, whose division hides from the loss what was clipped."""
    _, told = overflowing_run(monkeypatch, capsys, 65536.0, optimizer=optimizer)
    lines = read_metrics(empty_folder / "run" / "metrics.jsonl")
    counts = [line["overflows"] for line in lines]
    first = next(line for line in lines if line["overflows"])
    assert told.count("warning: float16 overflow") == 1
    assert (
        f"warning: float16 overflow: {first['overflows']:,} values became 65504 at update {first['update']}, as on an "
        "IPU: lower precision.loss_scale (65536), or optim.learning_rate if the scale is small; metrics.jsonl counts "
        "the next ones"
    ) in told
    assert f"report.html float16 overflow: {sum(counts):,} values became 65504" in told  # the summary
    page = (empty_folder / "run" / "report.html").read_text()
    assert f'<th scope="row">Float16 overflows</th><td>{sum(counts):,} values became 65504</td>' in page
    assert "run on ipu-sim, ipu numerics" in page


def test_a_good_loss_scale_has_no_overflows(monkeypatch, capsys, empty_folder):
    out, told = overflowing_run(monkeypatch, capsys, 256.0, "--json")
    assert "float16 overflow" not in told
    assert json.loads(out)["overflows"] == 0
    assert [line["overflows"] for line in read_metrics(empty_folder / "run" / "metrics.jsonl")] == [0] * 7


@pytest.mark.parametrize("stopped_after", [3, 4])
def test_a_resumed_run_counts_the_overflows_of_an_uninterrupted_one(monkeypatch, capsys, empty_folder, stopped_after):
    """Also those that no line of metrics had before the checkpoint, if not every host step has a line."""
    settings = {"log_every": 3, "evaluate_every": 5}
    whole = json.loads(overflowing_run(monkeypatch, capsys, 1e6, "--json", **settings)[0])
    metrics = metrics_without_times(empty_folder / "run")
    assert sum(line["overflows"] for line in metrics) == whole["overflows"] > 0
    shutil.rmtree("run")
    original = logger.RunLogger.step

    def stop(self, progress, *args):
        original(self, progress, *args)
        if progress.update == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(logger.RunLogger, "step", stop)
        out, _ = overflowing_run(monkeypatch, capsys, 1e6, **settings)
    assert "interrupted at update" in out
    resumed = json.loads(overflowing_run(monkeypatch, capsys, 1e6, "--json", "--resume", **settings)[0])
    assert resumed["overflows"] == whole["overflows"]
    assert metrics_without_times(empty_folder / "run") == metrics
    again = json.loads(overflowing_run(monkeypatch, capsys, 1e6, "--json", "--resume", **settings)[0])
    assert again["overflows"] == whole["overflows"]


def test_overflows_that_an_automatic_loss_scale_looks_for_are_counted_without_a_warning(
    monkeypatch, capsys, empty_folder
):
    automatic = ["--set", "precision.automatic_loss_scale=true", "--set", "precision.accumulation=float16"]
    out, told = overflowing_run(monkeypatch, capsys, 65536.0, "--json", *automatic)
    assert "float16 overflow" not in told
    assert json.loads(out)["overflows"] > 0

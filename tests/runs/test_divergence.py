"""Runs that diverge: they stop, name the batch, and keep a checkpoint from before the explosion."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from helpers import tiny_config, vit_ipu, write_config, write_image_folder

from vit_ipu import train
from vit_ipu.backends.contract import StepResult
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.data.loading.loader import TrainingStream
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import Evaluation
from vit_ipu.runs.divergence import problem_of_loss, problem_of_state
from vit_ipu.simulator import numerics
from vit_ipu.weights.native import checkpoints_in


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def explode_after(monkeypatch):
    """Sets a learning rate that explodes the weights in the fourth update."""

    def rate(update, total, optim):
        return 0.05 if update < 3 else 1e6

    monkeypatch.setattr(train, "learning_rate", rate)


LIMIT = 10 * math.log(10)


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
    found = problem_of_loss(StepResult(losses, sum(losses) / len(losses), 4), tiny_config())
    assert found is None if problem is None else found.startswith(problem)


def test_the_factor_can_be_changed_and_left_out():
    result = StepResult((5.0,), 5.0, 4)
    assert problem_of_loss(result, tiny_config(run={"max_loss_factor": 2.0})) is not None
    assert problem_of_loss(result, tiny_config(run={"max_loss_factor": None})) is None
    huge = StepResult((1e30,), 1e30, 4)
    assert problem_of_loss(huge, tiny_config(run={"max_loss_factor": None})) is None


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
    monkeypatch.setattr(train, "evaluate_batches", lambda *args: Evaluation(next(rising), 50.0, 1.0, 64))
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
    with numerics(mode):
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "ipu-sim")
    assert code == 0, err
    assert err.count("float16 overflow: ") == warns
    if warns:
        assert re.search(r"elements of the gradient of \S+ reach 65504, where an IPU clips them: lower the loss", err)

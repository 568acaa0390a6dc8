"""Runs with class weights, balanced sampling and a binary loss: trained, resumed, evaluated, used and reported."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import equal_states, interrupted_after, tiny_config, vit_ipu, write_config, write_image_folder
from PIL import Image
from small_runs import train_in

from vit_ipu.backends.build import build_backend, open_backend, resolve_device
from vit_ipu.benchmark import benchmark
from vit_ipu.compile import compile_program
from vit_ipu.config_file import load_config
from vit_ipu.data.sources.registry import open_source
from vit_ipu.evaluate import evaluate, evaluation_loader
from vit_ipu.predict import predict
from vit_ipu.runs.checkpoint import load_checkpoint
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.export import convert
from vit_ipu.weights.native import newest_checkpoint

FEATURES = {
    "class weights": {"optim": {"class_weights": "balanced", "label_smoothing": 0.1}},
    "balanced sampling": {
        "data": {"sampling": "balanced", "crop": "random_resized"},
        "optim": {"class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]},
    },
    "binary loss": {
        "data": {"mixup_alpha": 0.4},
        "optim": {"loss": "bce", "label_smoothing": 0.1, "bce_target_threshold": 0.2},
    },
}


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(monkeypatch, capsys, empty_folder, name, device):
    config = write_config(empty_folder, **FEATURES[name], run={"updates": 7, "evaluate_every": 7})
    command = ["train", config, "--device", device, "--output"]
    assert vit_ipu(monkeypatch, capsys, *command, "whole")[0] == 0
    with monkeypatch.context() as context:
        interrupted_after(context, 4)  # 96 images are 3 updates, so in the second epoch
        assert vit_ipu(monkeypatch, capsys, *command, "parts")[0] == 130
    assert vit_ipu(monkeypatch, capsys, *command, "parts", "--resume")[0] == 0
    whole, parts = (newest_checkpoint(empty_folder / run / "checkpoints") for run in ("whole", "parts"))
    assert whole.name == parts.name == "update-00000007"
    assert equal_states(load_checkpoint(whole, device_kind=device), load_checkpoint(parts, device_kind=device))
    losses = [[x.get("loss") for x in read_metrics(empty_folder / run / "metrics.jsonl")] for run in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len([loss for loss in losses[0] if loss is not None]) == 7


@pytest.mark.parametrize("name", FEATURES)
def test_simulated_ipus_log_the_losses_of_the_cpu(monkeypatch, capsys, empty_folder, name):
    config = write_config(empty_folder, **FEATURES[name])
    lines = {}
    for device in ("cpu", "ipu-sim"):
        code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", device, "--output", device)
        assert code == 0, err
        lines[device] = read_metrics(empty_folder / device / "metrics.jsonl")
    for key in ("loss", "evaluation_loss"):
        found, expected = ([line[key] for line in lines[device] if key in line] for device in ("ipu-sim", "cpu"))
        assert found == pytest.approx(expected, rel=1e-5)


def test_class_weights_change_the_loss_as_the_counts_say(empty_folder):
    """The head is zero at the start, so that the first loss is ln K times the mean weight of the batch."""
    config = tiny_config(
        model={"head_init": "zero"}, optim={"class_weights": "balanced", "learning_rate": 1e-9}, run={"updates": 3}
    )
    train_in(empty_folder / "run", config)
    labels = open_source(config.data, config.model, "train").labels
    weights = len(labels) / (10 * np.bincount(labels, minlength=10))
    losses = [line["loss"] for line in read_metrics(empty_folder / "run" / "metrics.jsonl") if "loss" in line]
    order = np.random.default_rng([42, 0]).permutation(96).reshape(3, 32)
    expected = [math.log(10) * weights[labels[part]].mean() for part in order]
    assert np.ptp(expected) > 0.02
    assert losses == pytest.approx(expected, rel=1e-6)
    assert np.mean(losses) == pytest.approx(math.log(10), rel=1e-6)


def test_the_images_of_a_rare_class_are_not_taken_for_a_divergence(empty_folder):
    write_image_folder(empty_folder, classes=("a", "b"), count=1)
    for number in range(1, 60):
        Image.new("RGB", (28, 28), (number, 7, 7)).save(str(empty_folder / "train" / "a" / f"{number}.png"))
    data = {"source": "imagefolder", "path": str(empty_folder), "num_train": None, "num_eval": None}
    config = tiny_config(
        model={"num_classes": 2},
        data=data,
        pipeline={"global_batch_size": 4},
        optim={"class_weights": "balanced", "learning_rate": 1e-6},
        run={"updates": 16, "max_loss_factor": 2.0},
    )
    summary, _ = train_in(empty_folder / "run", config)
    losses = [line["loss"] for line in read_metrics(empty_folder / "run" / "metrics.jsonl") if "loss" in line]
    assert max(losses) > 2 * math.log(2)  # the limit without class weights
    assert summary.progress.update == 16


def test_a_binary_loss_that_is_above_ten_times_ln_2_is_a_divergence(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, optim={"loss": "bce"}, model={"head_init": "normal", "head_bias_init": 20.0})
    code, _, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    assert code == 1
    assert "above run.max_loss_factor 10 times 0.6931, the loss of a guess among 10 classes" in err


# --------------------------------------------------------------------------- after a binary loss


@pytest.fixture
def binary_run(empty_folder):
    config = write_config(empty_folder, optim={"loss": "bce", "learning_rate": 0.5}, run={"updates": 6})
    train_in(empty_folder / "run", load_config(config))
    return config


def logits_of(config, run):
    device = resolve_device("cpu")
    with open_backend(config, device) as backend:
        state, _ = load_checkpoint(newest_checkpoint(run / "checkpoints"), device_kind="cpu")
        backend.load_state_dict(state)
        source = open_source(config.data, config.model, "eval")
        batches = list(evaluation_loader(source, config, backend))
        return torch.cat([backend.predict(batch.images) for batch in batches]), torch.from_numpy(source.labels)


def test_its_evaluation_is_binary_and_its_predictions_are_sigmoids(binary_run, empty_folder):
    config = load_config(binary_run)
    logits, labels = logits_of(config, empty_folder / "run")
    loss = F.binary_cross_entropy_with_logits(logits.double(), F.one_hot(labels, 10).double()).item()
    assert read_metrics(empty_folder / "run" / "metrics.jsonl")[-1]["evaluation_loss"] == pytest.approx(loss, rel=1e-6)
    found = evaluate(config, resolve_device("cpu"), str(empty_folder / "run")).evaluation
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert found.scores.probabilities.tolist() == pytest.approx(logits.max(dim=1).values.sigmoid().tolist(), rel=1e-5)
    image = sorted((empty_folder / "run" / "examples").glob("00_*.png"))[0]
    shown = predict(str(empty_folder / "run"), [str(image)], resolve_device("cpu"), top=10)[0].classes
    expected = logits[0].sigmoid().sort(descending=True).values
    assert [value for _, value in shown] == pytest.approx(expected.tolist(), rel=1e-5)
    assert abs(sum(value for _, value in shown) - 1) > 0.01


def test_its_checkpoint_may_be_evaluated_by_another_loss_with_a_note(binary_run, empty_folder):
    notes = []
    config = load_config(binary_run, ["optim.loss=cross_entropy"])
    found = evaluate(config, resolve_device("cpu"), str(empty_folder / "run"), notify=notes.append)
    assert notes == ["note: optim.loss is cross_entropy, but the checkpoint was trained with bce"]
    logits, labels = logits_of(config, empty_folder / "run")
    assert found.evaluation.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_its_conversion_states_sigmoids(binary_run, empty_folder):
    convert(str(empty_folder / "run"), empty_folder / "hf", "huggingface", notify=lambda text: None)
    stated = json.loads((empty_folder / "hf" / "config.json").read_text())
    assert stated["problem_type"] == "multi_label_classification"
    image = str(sorted((empty_folder / "run" / "examples").glob("*.png"))[0])
    ours, theirs = (
        dict(predict(str(empty_folder / name), [image], resolve_device("cpu"))[0].classes) for name in ("run", "hf")
    )
    assert theirs == pytest.approx(ours, rel=1e-4)


# ----------------------------------------------------------------------------------- other commands


def test_the_report_says_why_the_losses_differ(monkeypatch, capsys, empty_folder):
    config = write_config(empty_folder, data={"sampling": "balanced"}, optim={"class_weights": [1.0] * 9 + [2.0]})
    assert vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")[0] == 0
    page = (empty_folder / "run" / "report.html").read_text()
    assert "The training loss is that of training with class weights, balanced sampling; the held-out loss" in page


@pytest.mark.parametrize("name", FEATURES)
def test_plan_and_check_take_the_keys(monkeypatch, capsys, empty_folder, name):
    config = write_config(empty_folder, **FEATURES[name])
    assert vit_ipu(monkeypatch, capsys, "check", config)[0] == 0
    code, out, err = vit_ipu(monkeypatch, capsys, "plan", config, "--json")
    assert (code, json.loads(out)["violations"]) == (0, []), err


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
@pytest.mark.parametrize("real_data", [False, True])
def test_a_benchmark_has_class_weights(monkeypatch, device, real_data):
    losses = []
    config = tiny_config(**FEATURES["class weights"])
    kind = type(build_backend(config, resolve_device(device)))
    original = kind.train_step
    monkeypatch.setattr(kind, "train_step", lambda self, *args: losses.append(original(self, *args)) or losses[-1])
    benchmark(config, resolve_device(device), steps=1, burn_in=0, real_data=real_data)
    assert all(math.isfinite(result.loss) for result in losses)
    assert len(losses) >= 2


def test_compile_knows_the_class_weights(monkeypatch, empty_folder):
    import vit_ipu.compile as compiling

    given = []
    original = compiling.open_backend

    def open_backend(*args, **options):
        given.append(options["class_weights"])
        return original(*args, **options)

    monkeypatch.setattr(compiling, "open_backend", open_backend)
    config = tiny_config(**FEATURES["class weights"])
    compile_program(config, resolve_device("ipu-sim"))
    compile_program(tiny_config(), resolve_device("ipu-sim"))
    counts = np.bincount(open_source(config.data, config.model, "train").labels)
    assert given[0] == pytest.approx(96 / (10 * counts))
    assert given[1] is None

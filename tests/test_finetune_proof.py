"""The comparison of fine-tunes: a run that failed for another reason than its arithmetic is not taken for a result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vit_ipu.config_file import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROOFS = ["vit_small_patch14_finetune_fashion_mnist_ipu", "vit_small_patch14_finetune_drawings_ipu"]


@pytest.fixture
def benchmark(monkeypatch):
    """Returns a function that imports a program of benchmarks/, or skips the test if the program needs too much."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield lambda name: pytest.importorskip(name)
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_only_a_run_that_diverged_counts_as_failed(monkeypatch, tmp_path, benchmark):
    runs = benchmark("training_runs")
    arm, diverges = runs.Arm("an arm", "quickstart", "cpu"), []

    def run(command, **options):
        output = Path(command[command.index("--output") + 1])
        output.mkdir(exist_ok=True)
        if diverges:
            (output / "diverged.json").write_text("{}")
        return subprocess.CompletedProcess(command, 1, "", "vit-ipu: no space left")

    monkeypatch.setattr(runs.subprocess, "run", run)
    with pytest.raises(SystemExit, match="no space left$"):
        runs.train(arm, 3, tmp_path, {})
    assert not list(tmp_path.glob("*.json"))
    diverges.append(True)
    summary = runs.train(arm, 3, tmp_path, {})
    assert summary["top1"] != summary["top1"]
    assert [json.loads(path.read_text()) for path in tmp_path.glob("*.json")] == [{"top1": None}]


def test_an_arm_with_a_failed_run_is_told_as_not_shown(benchmark):
    proof = benchmark("finetune_proof")
    runs = {
        "float32": [{"seed": seed, "top1": 90.0 + seed} for seed in (1, 2, 3)],
        "IPU recipe": [{"seed": seed, "top1": top1} for seed, top1 in ((1, 91.1), (2, float("nan")), (3, 93.0))],
        "bfloat16": [{"seed": seed, "top1": 90.1 + seed} for seed in (3, 2, 1)],
        "timm": [{"seed": seed, "top1": 90.0 + 2 * seed} for seed in (2, 1)],
    }
    failed, paired, few = proof.verdicts(runs)
    assert failed == "IPU recipe minus float32: is not shown, because a run failed."
    assert paired.startswith("bfloat16 minus float32, 3 seeds: mean +0.10 points of top-1, 95 % interval")
    assert few == "timm minus float32, 2 seeds, too few for an interval: +2.00 and +1.00 points of top-1."


def test_the_picture_has_every_arm_also_one_that_is_far_below_or_failed(benchmark, tmp_path):
    proof = benchmark("finetune_proof")
    lines = [json.dumps({"update": update, "loss": 2.0 - 0.01 * update}) for update in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    runs = {
        "float32": [{"seed": 1, "top1": 90.0, "run": str(tmp_path)}, {"seed": 2, "top1": 91.0}],
        "bad loss scale": [{"seed": 1, "top1": 20.0}],
        "IPU recipe": [{"seed": 1, "top1": float("nan")}],
    }
    figure, axes = proof.plt.subplots()
    proof.draw_top1(runs, axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(runs)
    assert [text.get_text() for text in axes.texts] == ["\u2190 20.0 %"]
    assert [sorted(line.get_xdata()) for line in axes.lines] == [[90.0, 91.0], []]
    assert 88 < axes.get_xlim()[0] < 90 < 91 < axes.get_xlim()[1] < 92
    proof.plt.close(figure)
    proof.draw(runs, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_a_peer_trains_for_as_many_updates_as_the_config_says_in_epochs(benchmark):
    peer = benchmark("peer_finetune")
    from helpers import tiny_config
    from torch import nn

    config = tiny_config(run={"updates": None, "epochs": 2}, optim={"warmup_updates": 1, "learning_rate": 1.0})
    _, schedule = peer.optimizer_of(nn.Linear(2, 2), config, config.total_updates(96))
    assert schedule.lr_lambdas[0](config.total_updates(96)) == pytest.approx(0)


@pytest.mark.parametrize("peer", ["timm", "transformers"])
def test_a_peer_has_the_learning_rates_of_layer_decay(benchmark, peer):
    loop = benchmark("peer_finetune")
    from helpers import tiny_config

    from vit_ipu.model import ViT
    from vit_ipu.optim import optimizer_groups

    config = tiny_config(optim={"layer_decay": 0.5, "learning_rate": 1.0, "weight_decay": 0.1})

    def values_of(groups):
        counts = Counter()
        for group in groups:
            counts[group["lr"], group["weight_decay"]] += sum(parameter.numel() for parameter in group["params"])
        return counts

    optimizer, _ = loop.optimizer_of(loop.build(peer, config), config, 100)
    for group in optimizer.param_groups:  # the schedule has set the first rate of the warmup
        group["lr"] = group["initial_lr"]
    expected = values_of(optimizer_groups(ViT(config.model), config.optim))
    assert len({rate for rate, _ in expected}) == config.model.depth + 2
    assert values_of(optimizer.param_groups) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"crop": "center", "mixup_alpha": 0.2}}, "data.mixup_alpha: the plain loop"),
        ({"data": {"crop": "center"}, "optim": {"max_grad_norm": 1.0}}, "optim.max_grad_norm: the plain loop"),
        ({"data": {"crop": "padded"}}, "data.crop is 'padded'; the plain loop"),
    ],
)
def test_a_recipe_that_a_peer_does_not_follow_is_refused(benchmark, changed, message):
    from helpers import tiny_config

    with pytest.raises(SystemExit, match=message):
        benchmark("peer_finetune").refuse_others(tiny_config(**changed))


@pytest.mark.parametrize("name", ["quickstart", *PROOFS])
def test_a_peer_follows_the_recipes_that_it_is_compared_by(benchmark, name):
    benchmark("peer_finetune").refuse_others(load_config(name, []))


def test_rates_without_kept_runs_are_refused_if_nothing_is_trained(monkeypatch, tmp_path, benchmark):
    proof = benchmark("finetune_proof")
    options = ["--jobs", "0", "--config", "quickstart", "--rates", "0.1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["finetune_proof.py", "--device", "cpu", *options])
    with pytest.raises(SystemExit, match=r"has no run with one of the rates: train them with --jobs 1 or more$"):
        proof.main()

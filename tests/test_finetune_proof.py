"""The comparison of fine-tunes: a run that failed for another reason than its arithmetic is not taken for a result."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from vit_ipu.config_file import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROOFS = ["vit_small_patch14_finetune_fashion_mnist_ipu", "vit_small_patch14_finetune_drawings_ipu"]


@pytest.fixture(params=["timm", "transformers"])
def peer(request):
    """A library whose models are trained by a plain loop; transformers only with the names of its version 5."""
    pytest.importorskip(request.param, minversion="5" if request.param == "transformers" else None)
    return request.param


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
    assert failed == "IPU recipe minus float32: nothing is shown, because IPU recipe diverged with seed 2."
    assert paired.startswith("bfloat16 minus float32, 3 seeds: mean +0.10 points of top-1, 95 % interval")
    assert few == "timm minus float32, 2 seeds, too few for an interval: +2.00 and +1.00 points of top-1."


def of_seeds(*tops):
    return [{"seed": seed, "top1": top} for seed, top in enumerate(tops)]


@pytest.mark.parametrize(
    ("exact", "recipe", "expected"),
    [
        ((90.0, 91.0, 92.0), (90.1, 91.0, 92.1), "That the recipe loses less than 0.3 points holds."),
        ((90.0, 91.0, 92.0), (89.6, 90.7, 91.6), "That the recipe loses less than 0.3 points is not shown."),
        ((90.0, 91.0), (90.1, 91.1), "+0.10 and +0.10 points of top-1. That the recipe loses less than 0.3 points is"),
        ((90.0, float("nan")), (90.0, 91.0), "nothing is shown, because float32 diverged with seed 1."),
        ((90.0,), (90.0, 91.0), "nothing is shown; they have 1 seed in common."),
    ],
)
def test_the_recipe_has_a_verdict_whatever_was_run(benchmark, exact, recipe, expected):
    (sentence,) = benchmark("finetune_proof").verdicts({"float32": of_seeds(*exact), "IPU recipe": of_seeds(*recipe)})
    assert expected in sentence


def test_controls_must_be_worse_and_stochastic_rounding_is_judged_on_its_own_pairs(benchmark):
    proof = benchmark("finetune_proof")
    runs = {
        "float32": of_seeds(90.0, 91.0, 92.0),
        "IPU recipe": of_seeds(90.1, 91.1, 92.2),
        "IPU recipe, no stochastic rounding": of_seeds(89.1, 90.1, 91.2),
        "IPU recipe, bad loss scale": of_seeds(30.0, 40.0),
        "float32, random weights": of_seeds(89.0, 91.0),
    }
    sentences = proof.verdicts(runs)
    assert sentences[2].endswith("It is worse, as it must be.")
    assert sentences[3].endswith("It must be worse, and is not: the test is blind.")
    assert sentences[4].startswith("IPU recipe minus IPU recipe, no stochastic rounding, 3 seeds: mean +1.00 points")


def test_a_peers_kept_run_is_not_taken_after_its_loop_has_changed(benchmark, tmp_path, monkeypatch):
    runs = benchmark("training_runs")
    arms = [runs.Arm("an arm", "quickstart", "cpu", peer=peer) for peer in (None, "timm")]
    before = [runs._paths(arm, 1, tmp_path) for arm in arms]
    changed = tmp_path / "peer_finetune.py"
    changed.write_text("changed")
    monkeypatch.setattr(runs, "PEER_LOOP", changed)
    after = [runs._paths(arm, 1, tmp_path) for arm in arms]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_commits_of_runs_are_told(benchmark, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps({"commit": "2" if name == "a" else "1"}))
    summaries = [{"run": str(tmp_path / name)} for name in ("a", "b", "c", "gone")] + [{"top1": 1.0}]
    assert benchmark("training_runs").commits_of(summaries) == ["1", "2"]


def test_the_picture_has_every_arm_also_one_that_is_far_below_or_failed(benchmark, tmp_path):
    proof = benchmark("finetune_proof")
    lines = [json.dumps({"update": update, "loss": 2.0 - 0.01 * update}) for update in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    runs = {
        "float32": [{"seed": 1, "top1": 90.0, "run": str(tmp_path)}, {"seed": 2, "top1": 91.0}],
        "bad loss scale": [{"seed": 1, "top1": 20.0}, {"seed": 2, "top1": 90.5}],
        "IPU recipe": [{"seed": 1, "top1": float("nan")}],
    }
    figure, axes = proof.plt.subplots()
    proof.draw_top1(runs, axes)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(runs)
    assert [text.get_text() for text in axes.texts] == ["\u2190 20.0 %"]
    assert [sorted(line.get_xdata()) for line in axes.lines] == [[90.0, 91.0], [90.5], []]
    assert 88 < axes.get_xlim()[0] < 90 < 91 < axes.get_xlim()[1] < 92
    proof.plt.close(figure)
    proof.draw(runs, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proof.draw({"float32": runs["float32"][1:]}, tmp_path / "few.svg")  # fewer updates than a point is the mean of


def test_a_learning_rate_that_diverged_is_told_in_words(benchmark):
    proof = benchmark("finetune_proof")
    assert [proof.text_of_top1(top) for top in (91.853, -float("inf"))] == ["91.85 %", "diverged"]


def test_a_picture_is_named_by_its_day_so_that_an_older_record_keeps_its_own(benchmark, monkeypatch):
    record = benchmark("record")
    monkeypatch.setattr(record.time, "strftime", lambda form: "2027-01-31")
    assert record.picture_path("loss-curves", "cuda").name == "2027-01-31_loss-curves_cuda.svg"


def test_a_peer_trains_for_as_many_updates_as_the_config_says_in_epochs(benchmark):
    peer = benchmark("peer_finetune")
    from helpers import tiny_config
    from torch import nn

    config = tiny_config(run={"updates": None, "epochs": 2}, optim={"warmup_updates": 1, "learning_rate": 1.0})
    _, schedule = peer.optimizer_of(nn.Linear(2, 2), config, config.total_updates(96))
    assert schedule.lr_lambdas[0](config.total_updates(96)) == pytest.approx(0)


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
        ({"data": {"crop": "center"}, "optim": {"optimizer": "lamb"}}, "optim.optimizer is 'lamb'; the plain loop"),
        ({"data": {"crop": "center"}, "model": {"dropout": 0.1}}, "model.dropout: the plain loop"),
        ({"data": {"crop": "center"}, "model": {"head_init": "zero"}}, "model.head_init: the plain loop"),
        (
            {"data": {"crop": "center"}, "run": {"early_stopping": 3, "evaluate_every": 1}},
            "run.early_stopping is 3; the plain loop",
        ),
    ],
)
def test_a_recipe_that_a_peer_does_not_follow_is_refused(benchmark, changed, message):
    from helpers import tiny_config

    with pytest.raises(SystemExit, match=message):
        benchmark("peer_finetune").refuse_others(tiny_config(**changed))


@pytest.mark.parametrize("name", ["quickstart", *PROOFS])
def test_a_peer_follows_the_recipes_that_it_is_compared_by(benchmark, name):
    benchmark("peer_finetune").refuse_others(load_config(name, []))


def test_a_peer_has_the_mlp_and_the_epsilon_of_the_config(benchmark, peer):
    from helpers import tiny_config
    from torch import nn

    config = tiny_config(model={"mlp_ratio": 3.0, "layer_norm_eps": 0.01})
    modules = list(benchmark("peer_finetune").build(peer, config).modules())
    wide = int(3 * config.model.width)
    assert sum(isinstance(module, nn.Linear) and module.out_features == wide for module in modules) >= 1
    assert {module.eps for module in modules if isinstance(module, nn.LayerNorm)} == {0.01}


def test_too_few_images_for_a_batch_of_a_peer_are_refused(benchmark):
    with pytest.raises(SystemExit, match="^100 training images do not fill a batch of 128: set a smaller"):
        next(benchmark("peer_finetune").batches(100, 128, 3))


def test_a_warmup_to_the_end_is_a_schedule_of_a_peer(benchmark):
    from helpers import tiny_config
    from torch import nn

    config = tiny_config(run={"updates": 4}, optim={"warmup_updates": 4, "learning_rate": 1.0})
    _, schedule = benchmark("peer_finetune").optimizer_of(nn.Linear(2, 2), config, 4)
    assert [schedule.lr_lambdas[0](update) for update in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_rates_that_all_diverge_are_refused(benchmark, monkeypatch):
    proof = benchmark("finetune_proof")
    monkeypatch.setattr(proof, "validated", lambda *_: {"0.1": float("-inf"), "1": float("-inf")})
    monkeypatch.setattr(sys, "argv", ["finetune_proof.py", "--config", "quickstart", "--rates", "0.1", "1"])
    with pytest.raises(SystemExit, match="^training diverged with every rate of --rates: add smaller ones$"):
        proof.main()


def test_rates_without_kept_runs_are_refused_if_nothing_is_trained(monkeypatch, tmp_path, benchmark):
    proof = benchmark("finetune_proof")
    options = ["--jobs", "0", "--config", "quickstart", "--rates", "0.1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["finetune_proof.py", "--device", "cpu", *options])
    with pytest.raises(SystemExit, match=r"has no run with one of the rates: train them with --jobs 1 or more$"):
        proof.main()

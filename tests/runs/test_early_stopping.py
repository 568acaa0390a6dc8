"""run.early_stopping: a run ends after evaluations that were not better, and says so."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from helpers import tiny_values, vit_ipu, write_config
from small_runs import choose_evaluations, metrics_without_times, names_in, small_config, train_in

from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.config_file import parse_config
from vit_ipu.errors import ConfigError
from vit_ipu.runs.early_stopping import stops_early
from vit_ipu.unused_options import unused_options

BEST = "run.keep_best=top1"
TOP1 = {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 10: 31.0, 12: 32.0}
"""The pretended top-1 at each update."""


@pytest.fixture
def chosen_evaluations(monkeypatch):
    choose_evaluations(monkeypatch, TOP1)


def config(**run):
    return small_config(**{"updates": 12, "evaluate_every": 2, "early_stopping": 2, **run})


def test_a_run_stops_after_so_many_evaluations_that_are_not_better(chosen_evaluations, empty_folder):
    summary, lines = train_in(empty_folder / "run", config())
    assert (summary.progress.update, summary.total_updates) == (8, 12)
    assert summary.stopped_early
    assert not summary.interrupted
    assert summary.evaluation.top1 == 30.0
    assert "stopped early: top1 has not become better in 2 evaluations" in lines
    assert names_in(empty_folder / "run" / "checkpoints")[-1] == "update-00000008"
    assert [line["update"] for line in metrics_without_times(empty_folder / "run") if "loss" in line][-1] == 8


@pytest.mark.parametrize(
    ("run", "last"),
    [
        ({"early_stopping": 1}, 6),
        ({"early_stopping": 3}, 12),
        ({"keep_best": "loss"}, 8),
        ({"keep_best": "top5"}, 6),  # the best is the first
        ({"early_stopping_margin": 25.0}, 6),
        ({"early_stopping": None}, 12),
    ],
)
def test_measure_margin_and_number(chosen_evaluations, empty_folder, run, last):
    summary, _ = train_in(empty_folder / "run", config(**run))
    assert summary.progress.update == last
    assert summary.stopped_early is (last < 12)


def test_a_run_that_has_stopped_early_is_not_compiled_again(chosen_evaluations, empty_folder, monkeypatch):
    compiled, original = [], NativeBackend.compile
    monkeypatch.setattr(NativeBackend, "compile", lambda self: compiled.append(original(self)))
    for resume in (False, True):
        summary, _ = train_in(empty_folder / "run", config(), resume=resume)
        assert summary.stopped_early
    assert len(compiled) == 1  # on an IPU this takes most of an hour


def test_a_resumed_run_stops_at_the_same_update_and_can_be_allowed_more(chosen_evaluations, empty_folder):
    train_in(empty_folder / "whole", config())
    parts = empty_folder / "parts"
    train_in(parts, config(updates=4, early_stopping=None))
    summary, _ = train_in(parts, config(), resume=True, allowed_changes=["run.updates"])
    assert summary.progress.update == 8
    assert summary.stopped_early
    again, lines = train_in(parts, config(), resume=True)
    assert (again.progress.update, again.stopped_early) == (8, True)
    assert again.evaluation.top1 == 30.0
    assert "stopped early: top1 has not become better in 2 evaluations" in lines
    more, _ = train_in(parts, config(early_stopping=3), resume=True)
    assert (more.progress.update, more.stopped_early) == (12, False)


def test_the_rule_is_that_of_transformers():
    """Compares with the callback of transformers on random evaluations with many ties."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

    generator = random.Random(0)
    for _ in range(200):
        patience, measure = generator.randint(1, 4), generator.choice(["top1", "loss"])
        greater = measure == "top1"
        callback = EarlyStoppingCallback(patience)
        state, arguments = TrainerState(), SimpleNamespace(greater_is_better=greater)
        run = small_config(early_stopping=patience, evaluate_every=1, keep_best=measure).run
        values = [float(generator.randint(0, 6)) for _ in range(12)]
        for count, value in enumerate(values, start=1):
            callback.check_metric_value(arguments, state, TrainerControl(), value)
            if state.best_metric is None or (value > state.best_metric if greater else value < state.best_metric):
                state.best_metric = value  # as the trainer does after the callback
            stops = callback.early_stopping_patience_counter >= patience
            lines = [{"top1": value, "evaluation_loss": value} for value in values[:count]]
            assert stops_early(lines, run) is stops, (lines, patience)
            if stops:
                break


def test_slow_progress_counts_once_it_exceeds_the_margin():
    """As Lightning's min_delta: the best is the last evaluation that was better by the margin."""
    run = small_config(early_stopping=2, evaluate_every=1, early_stopping_margin=1.0).run
    lines = [{"top1": value} for value in (10.0, 10.6, 11.2, 11.8, 12.4)]
    assert not stops_early(lines, run)
    assert stops_early([{"top1": value} for value in (10.0, 10.6, 10.9)], run)


def test_the_command_says_that_the_run_has_ended(chosen_evaluations, monkeypatch, capsys, empty_folder):
    path = write_config(empty_folder, run={"updates": 12, "evaluate_every": 2, "early_stopping": 2})
    code, out, err = vit_ipu(monkeypatch, capsys, "train", path, "--device", "cpu", "--output", "run")
    assert code == 0, err
    assert "stopped early" in out
    assert "top-1 30.00 % after 8 updates" in out
    assert "interrupted" not in out
    code, out, _ = vit_ipu(monkeypatch, capsys, "train", path, "--device", "cpu", "--output", "other", "--set", BEST)
    assert "the best checkpoint is that of update 4; other now means it" in out


def test_without_evaluations_it_is_refused():
    with pytest.raises(ConfigError, match="early_stopping 3 counts evaluations, but the only one is at the end: set"):
        parse_config(tiny_values(run={"early_stopping": 3}))


def test_a_margin_alone_is_noted():
    note = "run.early_stopping_margin has no effect without early_stopping"
    assert note in unused_options(small_config(early_stopping_margin=0.5))
    assert note not in unused_options(config(early_stopping_margin=0.5))

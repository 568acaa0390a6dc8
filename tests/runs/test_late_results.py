"""Runs on a device that computes a host step while the next one is prepared: its losses come later."""

from __future__ import annotations

import pytest
from small_runs import metrics_without_times, names_in, small_config, train_in

from vit_ipu.backends.contract import StepResult
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.errors import RunFailed


class LateResult(StepResult):
    """A result that notes when its losses are read."""

    def __init__(self, result, events, number):
        self.__dict__.update(num_samples=result.num_samples, _result=result, _events=events, _number=number)

    @property
    def is_known(self):
        return False

    @property
    def losses(self):
        self._events.append(("read", self._number))
        return self._result.losses

    @property
    def loss(self):
        return self.losses[0]


@pytest.fixture
def late(monkeypatch):
    """Makes all results late; returns the list of what happens, and a function that changes results by their number."""
    events, changes = [], {}
    original = NativeBackend.train_step

    def train_step(self, batch, rate):
        result = original(self, batch, rate)
        number = sum(kind == "step" for kind, _ in events) + 1
        events.append(("step", number))
        return LateResult(changes.get(number, result), events, number)

    saved = NativeBackend.state_dict

    def state_dict(self):
        events.append(("save", None))
        return saved(self)

    monkeypatch.setattr(NativeBackend, "train_step", train_step)
    monkeypatch.setattr(NativeBackend, "state_dict", state_dict)
    return events, changes


def config_of():
    return small_config(updates=6, checkpoint_every=4, evaluate_every=3, log_every=1)


def test_a_step_is_logged_once_the_next_one_has_begun_or_before_a_checkpoint_or_an_evaluation(tmp_path, late):
    events, _ = late
    train_in(tmp_path / "late", config_of())
    order = [event for index, event in enumerate(events) if event not in events[:index] or event[0] == "save"]
    assert order == [
        ("step", 1),
        ("step", 2),
        ("read", 1),
        ("step", 3),
        ("read", 2),
        ("read", 3),  # before the evaluation
        ("step", 4),
        ("read", 4),  # before the checkpoint
        ("save", None),
        ("step", 5),
        ("step", 6),
        ("read", 5),
        ("read", 6),
        ("save", None),
    ]


def test_metrics_and_checkpoints_are_those_of_results_that_come_at_once(tmp_path, monkeypatch, late):
    train_in(tmp_path / "late", config_of())
    monkeypatch.undo()
    train_in(tmp_path / "at_once", config_of())
    late_lines, lines = (metrics_without_times(tmp_path / name) for name in ("late", "at_once"))
    assert late_lines == lines
    assert [line["update"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("number", "kept"), [(4, []), (5, ["diverged-update-00000004"])])
def test_a_late_loss_that_is_not_finite_fails_the_run_before_a_checkpoint_has_it(tmp_path, late, number, kept):
    _, changes = late
    changes[number] = StepResult((float("nan"),), float("nan"), 8)
    with pytest.raises(RunFailed, match=f"at update {number}"):
        train_in(tmp_path / "run", config_of())
    assert names_in(tmp_path / "run" / "checkpoints") == kept

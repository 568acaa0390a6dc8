"""Images per second of the steps, whose ends a GPU states later, and worker processes of evaluations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from small_runs import small_config, train_in

from vit_ipu.backends.contract import StepResult
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.data.loading.workers import WorkerPool
from vit_ipu.runs import logger
from vit_ipu.runs.metrics import read_metrics


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Late(StepResult):
    """A result of a GPU, which has the step done at a time of the clock."""

    @property
    def is_known(self):
        return False

    @property
    def ended_at(self):
        return self.done

    @property
    def losses(self):
        self.clock.now = max(self.clock.now, self.done)
        return (self.value,)


def late(clock, result, seconds, free):
    """Returns a result that the GPU has `seconds` after it is free."""
    found = Late.__new__(Late)
    values = {"clock": clock, "done": max(clock.now, free) + seconds, "value": result.loss}
    found.__dict__.update(result.__dict__, **values)
    return found


WAITS = {
    "for images": ([1.0] * 8, [0.01] * 8),
    "for the GPU": ([0.01] * 8, [1.0] * 8),
    "once, before the last step": ([0.01] * 7 + [30.0], [0.3] * 8),
    "by turns": ([0.01, 2.0] * 4, [0.5] * 8),
}
"""Seconds of loading the images of each step, and of computing it on the GPU."""


@pytest.mark.parametrize("every", [1, 2, 4], ids="evaluation every {}".format)
@pytest.mark.parametrize("name", list(WAITS))
def test_the_times_of_steps_are_those_of_the_gpu_to_the_last_one_before_an_evaluation(
    monkeypatch, tmp_path, name, every
):
    clock, done, steps = Clock(), [0.0], iter(zip(*WAITS[name]))
    original = NativeBackend.train_step

    def train_step(self, images, rate):
        loading, computing = next(steps)
        clock.now = max(clock.now + loading, done[-2] if len(done) > 1 else 0.0)  # it waits for the step but one
        result = late(clock, original(self, images, rate), computing, done[-1])
        done.append(result.done)
        return result

    monkeypatch.setattr(logger, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(NativeBackend, "train_step", train_step)
    config = small_config(evaluate_every=every)
    train_in(tmp_path / "run", config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    seconds = [config.pipeline.global_batch_size / line["images_per_second"] for line in lines]
    assert len(seconds) == 8
    assert seconds == pytest.approx(np.diff(done).tolist(), rel=1e-2)
    assert sum(seconds) == pytest.approx(clock.now, rel=1e-2)


def test_a_step_whose_result_is_known_ends_when_it_is_returned(monkeypatch, tmp_path):
    clock, original = Clock(), NativeBackend.train_step

    def train_step(self, images, rate):
        clock.now += 0.5
        return original(self, images, rate)

    monkeypatch.setattr(logger, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(NativeBackend, "train_step", train_step)
    config = small_config(evaluate_every=4)
    train_in(tmp_path / "run", config)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    expected = config.pipeline.global_batch_size / 0.5
    assert [line["images_per_second"] for line in lines] == pytest.approx([expected] * 8)


def test_all_evaluations_of_a_run_share_their_worker_processes(monkeypatch, tmp_path):
    pools, start = [], WorkerPool._start
    monkeypatch.setattr(WorkerPool, "_start", lambda pool: (pools.append(pool), start(pool)))
    config = small_config(evaluate_every=2)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    train_in(tmp_path / "run", config)
    assert len([line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "top1" in line]) == 4
    assert len(pools) == 2  # of the training and of the evaluations
    assert all(pool.is_closed for pool in pools)

"""Images per second of the steps, whose ends the host of a GPU sees late, and worker processes of evaluations."""

from __future__ import annotations

from types import SimpleNamespace

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
    def is_done(self):
        return self.clock.now >= self.done

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


@pytest.mark.parametrize(
    ("batch", "step", "room"),
    [(1.0, 0.01, True), (0.01, 1.0, True), (0.01, 1.0, False)],
    ids=["waits for images", "waits for the GPU", "waits for room on the GPU"],
)
def test_the_time_of_a_step_is_right_to_the_last_one_before_an_evaluation(monkeypatch, tmp_path, batch, step, room):
    clock, free = Clock(), [0.0]
    original = NativeBackend.train_step

    def train_step(self, images, rate):
        clock.now += batch
        if not room:
            clock.now = max(clock.now, free[0])
        result = late(clock, original(self, images, rate), step, free[0])
        free[0] = result.done
        return result

    monkeypatch.setattr(logger, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(NativeBackend, "train_step", train_step)
    config = small_config(evaluate_every=4)
    train_in(tmp_path / "run", config)
    speeds = [line["images_per_second"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(speeds) == 8
    expected = config.pipeline.global_batch_size / 1.0
    assert speeds[1:4] + speeds[6:] == pytest.approx([expected] * 5, rel=0.05)
    assert max(speeds) < 1.5 * expected


def test_all_evaluations_of_a_run_share_their_worker_processes(monkeypatch, tmp_path):
    pools, start = [], WorkerPool._start
    monkeypatch.setattr(WorkerPool, "_start", lambda pool: (pools.append(pool), start(pool)))
    config = small_config(evaluate_every=2)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    train_in(tmp_path / "run", config)
    assert len([line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "top1" in line]) == 4
    assert len(pools) == 2  # of the training and of the evaluations
    assert all(pool.is_closed for pool in pools)

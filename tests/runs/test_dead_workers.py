"""A process that loads images and dies ends a run: the message says how to continue."""

from __future__ import annotations

import os
import signal

import pytest
from small_runs import small_config, train_in

from vit_ipu.data.loading import loader
from vit_ipu.errors import WorkersFailed

DIED = (
    "a process that loads images died (exit code -9): out of memory? Lower data.num_workers, and see the system's log"
)


@pytest.mark.parametrize(("place", "update"), [("evaluation", 2), ("training", 6), ("training", None)])
def test_a_run_whose_worker_died_says_how_to_continue(monkeypatch, tmp_path, place, update):
    fill = loader._EvaluationFill if place == "evaluation" else loader.TrainingFill
    load, first = fill._sample, 0 if place == "evaluation" or update is None else 2

    def die(self, epoch, index, *args):
        if epoch >= first:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, epoch, index, *args)

    monkeypatch.setattr(fill, "_sample", die)
    every = {"evaluate_every": 2} if place == "evaluation" else {}
    config = small_config(checkpoint_every=2, **every)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    with pytest.raises(WorkersFailed) as ended:
        train_in(tmp_path / "run", config)
    last = f"{tmp_path}/run/checkpoints/update-{update or 0:08d}"
    expected = DIED if update is None else f"{DIED}; the last checkpoint is {last}: continue with --resume"
    assert str(ended.value) == expected

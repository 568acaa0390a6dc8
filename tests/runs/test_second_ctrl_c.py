"""A second Ctrl-C while the processes that load images end: it stops the run at once, and loses no checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import write_config

from vit_ipu.weights.native import newest_checkpoint

LAST = "run/checkpoints/update-00000003"
# A run that receives Ctrl-C at update 3, in the evaluation or before, while its processes load slow images.
RUN = """
import os, signal, sys, time
from vit_ipu.__main__ import main
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.data.loading import loader

place = sys.argv.pop()
predict, load, load_held_out = NativeBackend.predict, loader.TrainingFill._sample, loader._EvaluationFill._sample
train_step, steps = NativeBackend.train_step, []

def interrupted(self, images):
    if place == "evaluation":
        os.kill(os.getpid(), signal.SIGINT)
    return predict(self, images)

def third_interrupted(self, *args):
    steps.append(1)
    if place == "training" and len(steps) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return train_step(self, *args)

def slow(self, epoch, index, *args):
    time.sleep(1 if place == "training" and epoch == 2 else 0)
    return load(self, epoch, index, *args)

def slow_held_out(self, epoch, index, *args):
    time.sleep(1 if index >= 512 else 0)
    return load_held_out(self, epoch, index, *args)

NativeBackend.predict, NativeBackend.train_step = interrupted, third_interrupted
loader.TrainingFill._sample, loader._EvaluationFill._sample = slow, slow_held_out
main()
"""


@pytest.mark.parametrize("seconds", [0.2, 0.7])
@pytest.mark.parametrize("place", ["evaluation", "training"])
def test_a_second_ctrl_c_stops_a_run_whose_processes_are_ending(empty_folder, place, seconds):
    run = {"updates": 12, "evaluate_every": 3, "checkpoint_every": 3}
    config = write_config(empty_folder, run=run, data={"num_workers": 2, "num_eval": 700})
    command = [sys.executable, "-c", RUN, "train", config, "--device", "cpu", "--output", "run", place]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = next(line for line in process.stdout if "stopping" in line)
        assert "SIGINT: stopping after this host step; press Ctrl-C to stop at once" in line
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"vit-ipu: stopped at once; the last checkpoint is {LAST}\n")
    assert "continue with" not in out
    assert time.monotonic() - started < 4
    assert newest_checkpoint(Path("run/checkpoints")) == Path(LAST)

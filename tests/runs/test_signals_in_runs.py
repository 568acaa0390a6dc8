"""Signals in a real or pretended run: it ends with a checkpoint and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import vit_ipu, write_config

from vit_ipu.runs import logger
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.signals import SCHEDULERS
from vit_ipu.weights.native import newest_checkpoint


def test_a_signal_to_the_process_group_does_not_stop_a_worker(empty_folder):
    config = write_config(empty_folder, run={"updates": 100000}, data={"num_workers": 1})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = empty_folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.count("stopping after this host step") == 1
    assert err == ""
    last = read_metrics(metrics)[-1]["update"]
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == f"update-{last:08d}"


@pytest.mark.parametrize(
    ("number", "in_job", "code"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 130),
        (signal.SIGTERM, True, 75),
        (signal.SIGHUP, True, 129),
        (signal.SIGUSR1, False, 75),
        (signal.SIGUSR2, False, 75),
        (signal.SIGXCPU, False, 75),
    ],
)
def test_every_signal_ends_a_run_with_a_checkpoint(monkeypatch, capsys, empty_folder, number, in_job, code):
    original = logger.RunLogger.step

    def step(self, progress, *args):
        original(self, progress, *args)
        if progress.update == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(logger.RunLogger, "step", step)
    for name in SCHEDULERS:
        monkeypatch.delenv(name, raising=False)
    if in_job:
        monkeypatch.setenv("SLURM_JOB_ID", "17")
    config = write_config(empty_folder)
    found, out, err = vit_ipu(monkeypatch, capsys, "train", config, "--device", "cpu", "--output", "run")
    assert (found, err) == (code, "")
    assert out.count(f"{signal.Signals(number).name}: stopping after this host step") == 1
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == "update-00000002"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_ends_with_a_checkpoint(empty_folder, number):
    config = write_config(empty_folder, run={"updates": 100000})
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = empty_folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after this host step" in out
    assert "--output run --resume" in out
    assert "Traceback" not in err
    last = read_metrics(metrics)[-1]["update"]
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == f"update-{last:08d}"

"""Standard output and standard error that are full, closed or not read, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import write_config

from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.native import newest_checkpoint

ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))


def in_shell(folder, command, redirection):
    """Runs a command of vit-ipu in a shell that redirects its outputs; returns the exit code and what was written."""
    line = f"{sys.executable} -m vit_ipu {command} {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=str(folder), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirection", "err"),
    [
        (
            "> /dev/full",
            "vit-ipu: cannot write to standard output: No space left on device; continuing without it\n",
        ),
        (">&-", ""),
        ("2>&-", ""),
        (">&- 2>&-", ""),
        ("> /dev/full 2> /dev/full", ""),
    ],
)
def test_a_run_matters_more_than_its_output(empty_folder, redirection, err):
    config = write_config(empty_folder, run={"updates": 2}, data={"num_workers": 1})
    code, out, found = in_shell(empty_folder, f"train {config} --device cpu --output run", redirection)
    assert (code, found) == (0, err)
    assert ("top-1" in out) == (redirection == "2>&-")
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == "update-00000002"
    metrics = (empty_folder / "run" / "metrics.jsonl").read_text()
    assert len(read_metrics(empty_folder / "run" / "metrics.jsonl")) == len(metrics.splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_stdout_is_a_full_pipe_ends_with_a_checkpoint(empty_folder, number):
    config = write_config(empty_folder, run={"updates": 100000, "evaluate_every": 1})
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    command = [sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        metrics = empty_folder / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while len(read_metrics(metrics)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    os.close(read)
    os.close(write)
    assert process.returncode == (75 if number == signal.SIGUSR1 else 130), err
    assert err == "vit-ipu: standard output is a full pipe that nobody reads: lines are left out\n"
    last = read_metrics(metrics)[-1]["update"]
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == f"update-{last:08d}"


def test_a_closed_pipe_is_told_once_and_the_run_continues(empty_folder):
    config = write_config(empty_folder, run={"updates": 3, "evaluate_every": 1})
    code, out, err = in_shell(
        empty_folder, f"train {config} --device cpu --output run", "| head -1; exit ${PIPESTATUS[0]}"
    )
    assert (code, len(out.splitlines())) == (0, 1)
    assert err == "vit-ipu: cannot write to standard output: Broken pipe; continuing without it\n"
    assert newest_checkpoint(empty_folder / "run" / "checkpoints").name == "update-00000003"


@pytest.mark.parametrize("command", ["models", "models --json", "--version", "--help", "train --help"])
def test_a_result_that_cannot_be_written_is_an_error(empty_folder, command):
    code, _, err = in_shell(empty_folder, command, "> /dev/full")
    assert (code, err) == (1, "vit-ipu: cannot write to standard output: No space left on device\n")


def test_a_reader_that_has_seen_enough_gets_no_message(empty_folder):
    code, _, err = in_shell(empty_folder, "models", "| true; exit ${PIPESTATUS[0]}")
    assert err == ""
    assert code in (0, 1)


def test_nohup_is_respected(empty_folder):
    config = write_config(empty_folder, run={"updates": 100000})
    command = ["nohup", sys.executable, "-m", "vit_ipu", "train", config, "--device", "cpu", "--output", "run"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        metrics = empty_folder / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while len(read_metrics(metrics)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR2)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out.count("stopping after this host step") == 1
    assert "SIGUSR2" in out

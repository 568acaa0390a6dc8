"""Bad input of every kind gives one clear line on stderr and exit 2, at once, in little memory, and writes nothing.

Each case is a function that prepares the folder, a command, and texts that the line must contain.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import time

import bad_commands
import bad_configs
import bad_data
import bad_weights
import pytest
from bad_files import TRAIN
from helpers import vit_ipu, write_config

SECONDS, MEGABYTES = 2.0, 200
"""Limits of a case: seconds of the processor, because tests share it, and memory above that of a good run."""
HANGS_AFTER_SECONDS = 300
CASES = {**bad_configs.CASES, **bad_data.CASES, **bad_weights.CASES, **bad_commands.CASES}


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """Imports what the commands import, so that the time and the memory of imports are not those of the first case."""
    for name in (
        "train",
        "predict",
        "report.page",
        "report.curves",
        "weights.export",
        "data.packing.pack",
        "data.packing.verification",
        "benchmark",
    ):
        importlib.import_module(f"vit_ipu.{name}")
    importlib.import_module("datasets")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Trains a tiny run once, in another process; predictions of bad images start from it."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder)
    command = [sys.executable, "-m", "vit_ipu", *TRAIN, "--output", "run"]
    subprocess.run(command, cwd=str(folder), check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def entries_below(folder):
    return sorted((str(path), os.lstat(str(path)).st_size) for path in folder.rglob("*"))


def assert_refused(code, out, err, expected):
    assert code == 2, (out, err[:500])
    assert err.startswith("vit-ipu: "), err[:500]
    assert err.count("\n") == 1, err[:500]
    assert err[:-1].isprintable()
    assert len(err) < 2100
    assert "Traceback" not in out + err
    assert expected in err


def hangs(signum, frame):
    raise AssertionError(f"it hangs for {HANGS_AFTER_SECONDS} s")


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_refused_in_one_line(monkeypatch, capsys, tmp_path, request, name):
    prepare, command, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    if "RUN" in command:
        command = [str(request.getfixturevalue("finished_run")) if part == "RUN" else part for part in command]
    if prepare is not None:
        prepare(tmp_path)
    before, memory = entries_below(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS_AFTER_SECONDS)
    start = time.process_time()
    try:
        code, out, err = vit_ipu(monkeypatch, capsys, *command)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = time.process_time() - start
    assert_refused(code, out, err, expected)
    assert entries_below(tmp_path) == before
    assert seconds < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES << 10


def test_there_are_enough_cases():
    assert len(CASES) >= 150
    assert len(set(PROCESSES) & set(CASES)) == 15


PROCESSES = [
    "config: aliases that mean billions in a known key",
    "config: pipe",
    "config: endless device",
    "config: 6 GB",
    "set: integer of 5,000 digits",
    "shard: extended size below zero",
    "shard: pipe",
    "braces: 300,000,000 shards",
    "index that is endless",
    "table a bomb",
    "image: 6 GB",
    "weights: endless .npz",
    "config.json beside weights: deep",
    "environment.json with only one key",
    "command: config that is not UTF-8",
]


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_input_is_refused_by_a_real_process(tmp_path, request, name):
    prepare, command, expected = CASES[name]
    write_config(tmp_path)
    if "RUN" in command:
        command = [str(request.getfixturevalue("finished_run")) if part == "RUN" else part for part in command]
    if prepare is not None:
        prepare(tmp_path)
    before = entries_below(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "vit_ipu", *command],
        cwd=str(tmp_path),
        capture_output=True,
        timeout=HANGS_AFTER_SECONDS,
        check=False,
    )
    assert_refused(done.returncode, done.stdout.decode(), done.stderr.decode(), expected)
    assert entries_below(tmp_path) == before

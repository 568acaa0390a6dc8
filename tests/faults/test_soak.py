"""The soak program finds growing memory, and files and processes that are left open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    return soak


def samples(soak, memory=lambda at: 500e6, files=lambda at: 20):
    """Returns samples of 100 seconds; a warm-up of 20 seconds takes half of the memory."""
    times = range(101)
    return [soak.Sample(at, int(memory(at) / (2 if at < 20 else 1)), 0, files(at), 3) for at in times]


def test_flat_memory_is_not_a_problem(soak):
    noisy = samples(soak, memory=lambda at: 500e6 + 50e6 * (at % 5), files=lambda at: 20 + at % 7)
    assert soak.problems_of(noisy) == []
    assert abs(soak.growth_of(noisy, lambda sample: sample.memory)) < 0.001


def test_memory_that_grows_by_more_than_two_percent_is_a_problem(soak):
    assert soak.problems_of(samples(soak, memory=lambda at: 500e6 + 0.1e6 * at)) == []
    growing = samples(soak, memory=lambda at: 500e6 + 0.5e6 * at)
    assert soak.problems_of(growing) == ["memory has grown by 5.23%, more than 2%"]


def test_files_that_stay_open_are_a_problem(soak):
    leaking = samples(soak, files=lambda at: 20 + at // 10)
    assert soak.problems_of(leaking) == ["files: at most 30 at a time at the end, 24 after the warm-up"]


def test_a_sample_counts_children_and_their_files(soak):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while True:
            found = soak.sample_of(process.pid, 0.0)
            if found.processes == 2:
                break
        assert found.files >= 6
        assert found.rss >= found.memory > 1e6
        process.communicate(b"\n")
    assert soak.sample_of(os.getpid(), 0.0).processes >= 1

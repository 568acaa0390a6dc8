"""Runs that are killed at any instant, resumed, killed again and resumed end exactly as an uninterrupted run.

The environment variable FAULTS sets the number of killed runs; `make test-faults` kills 200.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any, Dict

import pytest
from fault_runs import NUM_FAULTS, StoppedRun
from file_operations import KILLS

BACKENDS = (("cpu", "exact"), ("ipu-sim", "exact"), ("ipu-sim", "ipu"))
COMBINATIONS = [(*backend, workers) for workers in (2, 0) for backend in BACKENDS]
INSTANTS = ("time", "operation", "evaluation")


@pytest.mark.parametrize("number", range(NUM_FAULTS))
def test_a_killed_run_ends_as_an_uninterrupted_one(forked_runs, whole_runs, tmp_path, number):
    device, numerics, workers = COMBINATIONS[number % len(COMBINATIONS)]
    whole = whole_runs.of(device, numerics)
    run = StoppedRun(forked_runs, tmp_path / "stopped", device, numerics, workers)
    draw = random.Random(number)
    instant = INSTANTS[(number + number // len(COMBINATIONS)) % len(INSTANTS)]
    limits = {"num_operations": len(whole_runs.operations()), "seconds": whole.seconds}
    kill(run, draw, instant, **limits, resume=False)
    for _ in range(draw.choice([0, 0, 1, 2])):
        kill(run, draw, draw.choice(INSTANTS), **limits, resume=run.has_begun())
    ended = run.resume()
    assert (ended.code, ended.err) == (0, "")
    run.assert_equal_to(whole)
    assert forked_runs.strays() == []


def kill(
    run: StoppedRun, draw: random.Random, instant: str, *, num_operations: int, seconds: float, resume: bool
) -> None:
    """Starts or resumes a run and kills it, or its process group, at an instant of one kind.

    `num_operations` and `seconds` are those of an uninterrupted run.
    """
    group = draw.random() < 0.5
    options: Dict[str, Any] = {}
    if instant == "operation":
        options["fault"] = (draw.choice(KILLS), draw.randrange(num_operations), group)
    elif instant == "evaluation":
        options["evaluated_batches"] = draw.randrange(2)
    process = run.start(resume=resume, **options)
    if instant == "time":
        time.sleep(draw.uniform(0, seconds))
        (os.killpg if group else os.kill)(process, signal.SIGKILL)
    ended = run.wait(process)
    assert ended.code in (-signal.SIGKILL, 0), ended.err

"""make test-ipu: without an IPU it says so; over the simulator its comparison can be rehearsed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ipu_acceptance.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_without_an_ipu_it_says_so_and_exits_2():
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("make test-ipu: --device ipu: PopTorch")
    assert done.stderr.count("\n") == 1


def test_rehearsal_over_the_simulator_writes_a_record_that_says_so(tmp_path):
    done = run("--device", "ipu-sim", "--skip-tests", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["simulated"] is True
    assert results["largest_relative_error"] < 1e-4
    (record,) = tmp_path.iterdir()
    text = record.read_text()
    assert "Simulated: no IPU was used" in text
    assert text.count("\n| ") == 2 + 20

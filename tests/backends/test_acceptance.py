"""The script of `make test-ipu`: its error without an IPU, and a rehearsal of its comparison on the simulator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ipu_acceptance.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_without_an_ipu_the_script_says_so_and_exits_2():
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("make test-ipu: --device ipu: PopTorch")
    assert done.stderr.count("\n") == 1


def test_a_rehearsal_on_the_simulator_writes_a_record_marked_as_simulated(tmp_path):
    done = run("--device", "ipu-sim", "--skip-tests", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["simulated"] is True
    assert results["largest_relative_error"] < 1e-4
    (record,) = tmp_path.iterdir()
    text = record.read_text()
    assert "Simulated: no IPU was used" in text
    assert text.count("\n| ") == 2 + 20

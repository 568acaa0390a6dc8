"""make setup says what it does: a line for each step in a log, and pip's progress in a terminal."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = ["setup, step 1 of 3: an environment in ", "setup, step 2 of 3: ", "setup, step 3 of 3: ", "setup is done: "]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def setup(tmp_path):
    """Returns a function that makes a target with a Python that only writes its arguments, and returns the output."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "python $*"\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def call(target, stderr):
        arguments = ["make", "-C", str(ROOT), "--no-print-directory", target]
        arguments += [f"PYTHON={python}", f"VENV={tmp_path / target}"]
        done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)
        return done.stdout.splitlines()

    return call


@pytest.mark.parametrize("target", ["setup", "setup-locked"])
def test_each_step_is_a_line_and_a_log_stays_short(setup, target):
    lines = setup(target, subprocess.PIPE)
    steps = [line for line in lines if not line.startswith("python ")]
    assert len(steps) == len(STEPS)
    assert all(line.startswith(start) for line, start in zip(steps, STEPS))
    assert lines[0] == steps[0]
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--quiet" in line for line in installs)


def test_a_terminal_shows_what_pip_does(setup):
    master, terminal = pty.openpty()
    try:
        installs = [line for line in setup("setup", terminal) if "pip install" in line]
    finally:
        os.close(master)
        os.close(terminal)
    assert len(installs) == 2
    assert not any("--quiet" in line for line in installs)

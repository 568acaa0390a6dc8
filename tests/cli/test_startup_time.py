"""A quick start: no heavy package is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "command", [["--help"], ["train", "--help"], ["models"], ["plan", "quickstart"], ["config"], ["config", "--schema"]]
)
def test_no_torch_before_it_is_needed(command):
    imported = run("-X", "importtime", "-m", "vit_ipu", *command).stderr
    assert "| vit_ipu" in imported or "vit_ipu.cli.app" in imported
    assert " torch" not in imported.replace("vit_ipu", "")


def test_importing_the_package_imports_nothing_heavy():
    code = "import vit_ipu, sys; print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    assert run("-c", code).stdout == "[]\n"


def test_the_simulator_imports_torch_at_the_first_use_of_a_name_of_poptorch():
    code = "import sys; import vit_ipu.simulator.cost.liveness, vit_ipu.simulator as s; print('torch' in sys.modules)"
    assert run("-c", f"{code}; s.Options; print('torch' in sys.modules)").stdout == "False\nTrue\n"


def test_help_answers_within_half_a_second():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run("-m", "vit_ipu", "--help")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_help_names_every_command():
    text = run("-m", "vit_ipu", "--help").stdout
    for command in (
        "train",
        "evaluate",
        "predict",
        "plan",
        "compile",
        "benchmark",
        "models",
        "report",
        "init",
        "config",
    ):
        assert f"\n  {command} " in text


def test_version():
    from vit_ipu import __version__

    assert run("-m", "vit_ipu", "--version").stdout == __version__ + "\n"

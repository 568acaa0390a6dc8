""".ci/Dockerfile fits the repository: docker cannot run in the tests, but its files and commands are checked."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import typer.main
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest needs tomli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / ".ci" / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEPS = [
    tuple(line.split(None, 1))
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
    if line
]
"""Instructions with their arguments."""


def arguments_of(name):
    return [arguments for instruction, arguments in STEPS if instruction == name]


def copied():
    """Returns the sources and the target of each COPY."""
    return [(parts[:-1], parts[-1]) for parts in map(str.split, arguments_of("COPY"))]


def test_it_has_only_instructions_of_docker():
    assert {name for name, _ in STEPS} == {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    assert STEPS[0][0] == "FROM"


def test_its_python_is_one_that_the_program_is_tested_with():
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", arguments_of("FROM")[0])[1]
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_what_it_copies_is_tracked():
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source


def test_the_extras_exist_and_torch_is_what_the_program_needs():
    installed = [shlex.split(part) for run in arguments_of("RUN") for part in run.split("&&") if "pip install" in part]
    extras = re.search(r"\[(.*)\]", " ".join(installed[-1]))[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    names = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert {"torch", "torchvision"} <= set(installed[0]) & names
    index = installed[0][installed[0].index("--index-url") + 1]
    assert index in (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_starts_the_program_and_installs_nothing_of_graphcores():
    assert json.loads(arguments_of("ENTRYPOINT")[0]) == list(PROJECT["scripts"])
    assert json.loads(arguments_of("CMD")[0]) == ["--help"]
    assert not re.search("popart|poplar|poptorch", " ".join(arguments_of("RUN")))


def test_the_commands_in_its_head_exist():
    from vit_ipu.cli.app import app

    named = re.findall(r"^#   docker run .* vit-ipu ([a-z]+) ", TEXT, re.M)
    assert len(named) == 2
    assert set(named) <= set(typer.main.get_command(app).commands)
    assert "docker build -f .ci/Dockerfile" in TEXT


def test_the_program_is_built_from_what_is_copied(tmp_path):
    for sources, target in copied():
        place = tmp_path / target.strip("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(str(ROOT / source), str(place), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(exist_ok=True)
                shutil.copy(str(ROOT / source), str(place))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(tmp_path / "dist"), str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    names = zipfile.ZipFile(str(wheel)).namelist()
    assert {"vit_ipu/__main__.py", "vit_ipu/pipeline_configs/quickstart.yaml"} <= set(names)
    assert "vit_ipu/simulator/arithmetic/kernels.c" in names

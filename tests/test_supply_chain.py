"""The lock files cover what pyproject.toml asks for, and nothing can install PyPI's unrelated popart or poptorch."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest needs tomli

ROOT = Path(__file__).parent.parent
LOCKED = ROOT / ".ci" / "locked"
PROJECT: Dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENVIRONMENTS = {"development.txt": (["dev", "test", "bench"], "3.11"), "ipu-host.txt": (["test"], "3.8")}
"""The extras and the Python of each lock file."""
GRAPHCORE = ("poptorch", "popart", "poplar", "popdist", "popxl", "poplibs", "poprun", "poprt", "poputil", "gcipuinfo")
"""Names of Graphcore's software, which comes from the Poplar SDK: on PyPI anyone may own them."""


def locked(name: str) -> Dict[str, Dict[str, Any]]:
    """Returns version and hashes of each package of a lock file."""
    found = {}
    for entry in re.sub(r" \\\n", " ", (LOCKED / name).read_text()).splitlines():
        if entry and not entry.startswith("#"):
            package, *options = entry.split()
            title, version = package.split("==")
            found[canonicalize_name(title)] = {"version": version, "options": options}
    return found


def asked_for(extras: List[str], python: str) -> List[Requirement]:
    """Returns the requirements of pyproject.toml for some extras and a version of Python, and for building."""
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    lines += [line for extra in extras for line in PROJECT["project"]["optional-dependencies"][extra]]
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    requirements = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in requirements
        if requirement.name != "vit-ipu" and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]


def is_graphcores(name: str) -> bool:
    """Tells whether a package has one of Graphcore's names, or one that looks like it."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return any(
        plain.startswith(known) or difflib.SequenceMatcher(None, plain, known).ratio() > 0.85 for known in GRAPHCORE
    )


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_lock_file_covers_the_requirements(name):
    packages = locked(name)
    for requirement in asked_for(*ENVIRONMENTS[name]):
        package = packages[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(package["version"], prereleases=True), requirement


def test_the_lock_file_of_the_ipu_host_obeys_the_constraints():
    packages = locked("ipu-host.txt")
    lines = (ROOT / "constraints-ipu.txt").read_text().splitlines()
    constraints = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(constraints) == 4
    for constraint in constraints:
        assert constraint.specifier.contains(packages[canonicalize_name(constraint.name)]["version"]), constraint


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_lock_file_has_hashes_and_names_no_index(name):
    packages = locked(name)
    assert len(packages) > 100
    for title, package in packages.items():
        assert package["options"], title
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in package["options"]), title
    assert not re.search(r"://|index|find-links", (LOCKED / name).read_text().replace("shard-index", ""))


def test_locked_environments_are_installed_with_hashes_and_without_running_setup_programs():
    makefile = (ROOT / "Makefile").read_text()
    command = re.search(r"^INSTALL_LOCKED := (.*)$", makefile, re.M)[1]
    assert {"--require-hashes", "--only-binary"} <= set(command.split())
    for name in ENVIRONMENTS:
        assert f"$(INSTALL_LOCKED) -r $(LOCKED)/{name}" in makefile


def test_nothing_that_is_asked_for_or_locked_has_a_name_of_graphcores():
    sections = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"]]
    sections += PROJECT["project"]["optional-dependencies"].values()
    names = [Requirement(line).name for section in sections for line in section]
    names += [name for lock in ENVIRONMENTS for name in locked(lock)]
    lines = (LOCKED / "build.in").read_text() + (ROOT / "constraints-ipu.txt").read_text()
    names += [Requirement(line).name for line in lines.splitlines() if not line.startswith("#")]
    assert len(names) > 300
    assert [name for name in names if is_graphcores(name)] == []


def test_no_installed_package_asks_for_one_with_a_name_of_graphcores():
    """Reads the metadata of all packages of this environment, extras included."""
    asked = {}
    for distribution in importlib.metadata.distributions():
        title = distribution.metadata["Name"] or ""
        for line in distribution.requires or ():
            if is_graphcores(Requirement(line).name) and not is_graphcores(title):  # the SDK's own wheels may
                asked[title] = line
    assert asked == {}


@pytest.mark.parametrize(
    "name", ["poptorch", "PopTorch", "pop-torch", "popt0rch", "poptorch-nightly", "popular", "popart"]
)
def test_names_of_graphcores_and_look_alikes_are_found(name):
    assert is_graphcores(name)


@pytest.mark.parametrize("name", ["torch", "torchvision", "pillow", "pyarrow", "pooch", "protobuf", "popsicle"])
def test_other_names_are_not(name):
    assert not is_graphcores(name)

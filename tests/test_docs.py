"""The documents are correct: commands, files and modules that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_ipu.config_file import shipped_configs
from vit_ipu.report.timetable import timetable_svg
from vit_ipu.runs.folder import _CANNOT_CHANGE

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_pipeline_picture_shows_the_timetable():
    picture = (ROOT / "docs" / "pipeline.svg").read_text()
    assert picture.replace(' style="background:#ffffff"', "").strip() == timetable_svg(4, 8)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_and_files_exist(path):
    text = path.read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"`?make ([a-z][a-z-]+)", text):
        assert target in targets, target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:tests|benchmarks)/[a-z0-9_/]+\.py)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"pipeline_configs/([a-z0-9_]+)\.yaml", text):
        assert name in shipped_configs(), name


def test_commands_in_the_readme_exist():
    import typer.main

    from vit_ipu.cli.app import app

    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\$ vit-ipu ([a-z]+)", readme, re.M)) <= commands
    assert set(re.findall(r"^\| `([a-z]+) [A-Z]", readme, re.M)) | {"models", "config"} == commands


def test_the_map_of_modules_is_correct_and_complete():
    """Checks that the page names only existing modules, and all modules outside of folders described as a unit."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.stem: path for path in (ROOT / "vit_ipu").rglob("*.py") if not path.stem.startswith("_")}
    for block in page.split("```")[1:4:2]:
        for name in re.findall(r"\b([a-z][a-z_]+)\.py", block):
            assert name in modules, name
    folders_described_as_a_unit = ("simulator/ops", "standins", "child_path", "backends", "report")
    for name, path in modules.items():
        if not any(folder in str(path.parent.relative_to(ROOT)) for folder in folders_described_as_a_unit):
            assert re.search(rf"\b{name}\b", page), f"{path.relative_to(ROOT)} is missing in docs/architecture.md"


def test_pages_about_ipus_say_that_no_ipu_has_run_this_code():
    for name in ("README.md", "docs/running_on_ipu.md", "docs/simulator.md"):
        text = " ".join((ROOT / name).read_text().split())
        assert re.search(
            r"No IPU has run this code yet|has been run on hardware yet|has been compared with an IPU", text
        )


def test_the_page_on_checkpoints_names_what_no_resumed_run_can_change():
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    sentence = re.search(r"The model's shape,(.*?)cannot change\.", page, re.S)[1]
    assert set(re.findall(r"`([\w.]+)`", sentence)) == {key for key in _CANNOT_CHANGE if not key.startswith("model.")}


def test_no_page_recommends_the_unrelated_popart_poplar_or_poptorch_of_pypi():
    files = [
        *DOCUMENTS,
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        ROOT / ".ci" / "run",
        *ROOT.glob(".github/**/*.yml"),
    ]
    for path in files:
        for line in path.read_text().splitlines():
            if re.search(r"pip3? install.*\b(popart|poplar|poptorch)\b(?!-3)", line):
                assert "Never" in line or "`pip install popart` or `poplar`" in line, line

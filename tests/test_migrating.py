"""docs/migrating.md names keys, values and options that exist here, and arguments that transformers has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import List, Tuple

import pytest
import typer.main
import yaml
from pydantic import TypeAdapter

from vit_ipu.cli.app import app
from vit_ipu.config import Config
from vit_ipu.config_mistakes import all_keys, section_fields

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands
OF_THE_SCRIPT = {"model_name_or_path", "dataset_name", "train_dir", "train_val_split", "compute_metrics"}
"""Names of the last table that are not fields of TrainingArguments."""
REMOVED = {"warmup_ratio"}
"""Fields that transformers 5 has no longer."""


def rows(title: str = "") -> List[Tuple[str, str, str]]:
    """Returns the cells of the rows of all tables, or of the one under a title."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        if section.startswith(title):
            cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
            found += [tuple(cell.strip() for cell in row) for row in cells[1:]]
    return found


def quoted(text: str) -> List[str]:
    return re.findall(r"`([^`]+)`", text)


SETTINGS = sorted({part for _, ours, note in rows() for part in quoted(ours) if re.match(r"[a-z]+\.[a-z_]+", part)})
SETTINGS += sorted(
    {part for _, _, note in rows() for part in quoted(note) if part.split(".")[0] in Config.model_fields}
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_key_exists_and_takes_the_value(setting):
    key, _, value = setting.partition(": ")
    assert key in all_keys()
    if value:
        section, _, name = key.partition(".")
        annotation = section_fields(section)[name].annotation
        TypeAdapter(annotation).validate_python(yaml.safe_load(value))


def test_the_text_names_existing_keys():
    named = re.findall(rf"`((?:{'|'.join(Config.model_fields)})\.[a-z_]+)`", PAGE.split("\n## ")[0])
    assert len(named) >= 6
    assert set(named) <= set(all_keys())


def test_every_row_has_a_counterpart_or_none():
    table = rows()
    assert len(table) > 150
    for theirs, ours, _ in table:
        assert theirs
        assert ours == "none" or quoted(ours), theirs


def test_commands_and_options_exist():
    named = [part for _, ours, note in rows() for part in quoted(ours + note) if part.startswith("vit-ipu ")]
    assert len(named) >= 8
    for text in named:
        command = COMMANDS[text.split()[1]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", text)) <= options, text


def test_the_arguments_of_transformers_exist():
    import transformers

    known = {field.name for field in fields(transformers.TrainingArguments)} | OF_THE_SCRIPT | REMOVED
    named = [name for theirs, _, _ in rows("transformers") for name in quoted(theirs)]
    assert len(named) > 40
    assert set(named) <= known


def test_a_magnitude_of_timms_rand_augment_is_scaled_to_torchvisions():
    """timm's magnitudes go to 10 (timm/data/auto_augment.py, _LEVEL_DENOM) and torchvision's to 30."""
    ours = {theirs: ours for theirs, ours, _ in rows("timm")}
    assert ours["`--aa rand-m9-mstd0.5-inc1`"] == f"`data.rand_augment: [2, {9 * 30 // 10}]`"

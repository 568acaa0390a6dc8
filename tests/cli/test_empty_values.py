"""Empty values on the command line are refused by name: as a path, an empty text would mean the current folder."""

from __future__ import annotations

import pytest
from helpers import vit_ipu, write_config

OPTION = "is empty: give a value or leave it out; if it is a shell variable, set it"
ARGUMENT = "is empty: give a value; if it is a shell variable, set it"
COMMANDS = {
    "train: config": (["train", ""], f"CONFIG {ARGUMENT}"),
    "train: output": (["train", "tiny.yaml", "--device", "cpu", "--output", ""], f"--output {OPTION}"),
    "train: output with =": (["train", "tiny.yaml", "--device", "cpu", "--output="], f"--output {OPTION}"),
    "train: the second override": (["train", "tiny.yaml", "--set", "run.updates=1", "--set", ""], f"--set {OPTION}"),
    "evaluate: checkpoint": (["evaluate", "tiny.yaml", "--checkpoint", ""], f"--checkpoint {OPTION}"),
    "predict: checkpoint": (["predict", "", "a.png"], f"CHECKPOINT {ARGUMENT}"),
    "predict: second image": (["predict", "run", "a.png", ""], f"IMAGE {ARGUMENT}"),
    "plan: output": (["plan", "tiny.yaml", "--search", "--output", ""], f"--output {OPTION}"),
    "plan: hardware": (["plan", "tiny.yaml", "--hardware", ""], f"--hardware {OPTION}"),
    "convert: source": (["convert", "", "x", "--to", "timm"], f"SOURCE {ARGUMENT}"),
    "convert: format": (["convert", "run", "x", "--to", ""], f"--to {ARGUMENT}"),
    "pack: target": (["pack", "images", ""], f"TARGET {ARGUMENT}"),
    "report: run": (["report", ""], f"RUN {ARGUMENT}"),
    "report: pictures": (["report", "run", "--pictures", ""], f"--pictures {OPTION}"),
    "init: folder": (["init", ""], f"FOLDER {ARGUMENT}"),
    "config: name": (["config", ""], f"NAME {ARGUMENT}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_value_is_refused_by_name_and_writes_nothing(empty_folder, monkeypatch, capsys, name):
    write_config(empty_folder)
    arguments, expected = COMMANDS[name]
    assert vit_ipu(monkeypatch, capsys, *arguments) == (2, "", f"vit-ipu: {expected}\n")
    assert [path.name for path in empty_folder.iterdir()] == ["tiny.yaml"]


def test_a_mistake_in_an_option_is_told_before_an_empty_value(monkeypatch, capsys):
    code, _, err = vit_ipu(monkeypatch, capsys, "train", "", "--bogus")
    assert code == 2
    assert "--bogus" in err

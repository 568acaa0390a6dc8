"""`evaluate` tells each class and, with --predictions, each image."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from helpers import vit_ipu, write_config, write_image_folder
from reported_runs import trained


def test_evaluate_tells_each_class_and_each_image(run, empty_folder):
    trained(run, empty_folder, "cpu")
    evaluate = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--device", "cpu", "--json"]
    found = json.loads(run(*evaluate, "--predictions", "all.csv"))
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == found["num_images"] == 50
    assert [entry["num_images"] for entry in found["per_class"]] == [sum(row) for row in confusion]
    right = sum(confusion[label][label] for label in range(10))
    assert found["top1"] == pytest.approx(100 * right / 50)
    lines = (empty_folder / "all.csv").read_text().splitlines()
    assert lines[0] == "image,class,predicted,probability,loss"
    rows = [line.split(",") for line in lines[1:]]
    assert len({row[0] for row in rows}) == 50
    assert sum(row[1] == row[2] for row in rows) == right


def test_predictions_need_a_folder(run, monkeypatch, capsys, empty_folder):
    trained(run, empty_folder, "cpu")
    capsys.readouterr()
    arguments = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--predictions", "no/all.csv"]
    code, _, err = vit_ipu(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "--predictions no/all.csv: no is not a folder" in err


def test_predictions_keep_names_that_are_formulas_and_warn_of_them(run, empty_folder):
    classes = ('+1, or "so"', "=cmd")
    write_image_folder(empty_folder / "images", classes=classes, count=8)
    data = {"source": "imagefolder", "path": "images", "num_train": None, "num_eval": None}
    config = write_config(empty_folder, data=data, model={"num_classes": 2}, run={"updates": 2})
    run("train", config, "--device", "cpu", "--output", "run")
    evaluate = ["evaluate", config, "--checkpoint", "run", "--device", "cpu", "--predictions", "all.csv"]
    warning = "warning: all.csv has names that a spreadsheet program takes for formulas, such as "
    assert run(*evaluate).splitlines()[0] == f"{warning}{classes[0]}: import its columns as text"
    with open("all.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert {row["class"] for row in rows} == set(classes)
    assert all(Path("images", row["image"]).is_file() or Path(row["image"]).is_file() for row in rows)


def test_predictions_without_formulas_have_no_warning(run, empty_folder):
    trained(run, empty_folder, "cpu")
    evaluate = ["evaluate", "tiny.yaml", "--checkpoint", "run-cpu", "--device", "cpu", "--predictions", "all.csv"]
    assert "warning" not in run(*evaluate)

"""A run folder is refused among class folders, whose names are classes, and allowed beside divided or packed images."""

from __future__ import annotations

import os

import pytest
from helpers import tiny_values, vit_ipu

from vit_ipu.config_file import parse_config
from vit_ipu.runs.folder import RunFolder


@pytest.mark.parametrize("name", [".", "../pictures"])
def test_runs_are_not_written_among_the_class_folders(monkeypatch, capsys, folder, name):
    monkeypatch.chdir("pictures")
    before = sorted(os.listdir())
    code, out, err = vit_ipu(monkeypatch, capsys, "init", name)
    assert (code, out) == (2, "")
    assert err == (
        f"vit-ipu: {name} contains the current folder, so runs would lie among its class folders: go to another "
        "folder, such as .., and give the path from there\n"
    )
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("output", ["pictures", "pictures/run", "pictures/cat/run", "link/run"])
def test_a_run_folder_among_the_class_folders_is_refused(monkeypatch, capsys, folder, run, output):
    run("init", "pictures", "--device", "cpu")
    os.symlink("pictures", "link")
    before = sorted(os.listdir("pictures"))
    code, _, err = vit_ipu(monkeypatch, capsys, "train", "pictures.yaml", "--device", "cpu", "--output", output)
    assert code == 2
    assert err == (
        f"vit-ipu: the run folder {output} is in data.path pictures, whose folders are classes: give an --output "
        "outside of it\n"
    )
    assert sorted(os.listdir("pictures")) == before


def test_a_run_folder_beside_packed_images_of_which_some_are_held_out_is_allowed(tmp_path):
    config = parse_config(tiny_values(data={"source": "shards", "path": str(tmp_path), "holdout": 0.1}))
    folder = RunFolder.create(tmp_path / "run", config)
    assert folder.config.is_file()
    folder.release()


def test_a_run_folder_beside_divided_images_is_allowed(folder, run):
    run("init", "divided", "--device", "cpu")
    small = ["run.updates=1", "run.epochs=null", "run.evaluate_every=null", "run.keep_best=null", "model.depth=1"]
    overrides = [part for one in [*small, "optim.warmup_updates=0"] for part in ("--set", one)]
    assert "run folder divided/run\n" in run(
        "train", "divided.yaml", "--device", "cpu", "--output", "divided/run", *overrides
    )

"""Mistakes in paths are told before anything is printed, read, or made: each is one line, and the exit code is 2."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest
from helpers import vit_ipu, write_config, write_image_folder

TRAIN = ["train", "tiny.yaml", "--device", "cpu", "--set", "optim.eps=1e-6"]  # the setting has no effect: a note
EVALUATE = ["evaluate", "tiny.yaml", "--device", "cpu", "--set", "optim.eps=1e-6", "--checkpoint"]
BENCHMARK = ["benchmark", "tiny.yaml", "--device", "cpu", "--set", "optim.eps=1e-6"]
FOLDER = ["--set", "data.source=imagefolder", "--set", "data.path=nowhere"]
SHARDS = ["--set", "data.source=shards", "--set", "data.path=divided", "--set", "data.eval_path=no-{0..3}.tar"]

MISTAKES = {
    "train: output in a file": ([*TRAIN, "--output", "tiny.yaml/run"], ["tiny.yaml/run", "Not a directory"]),
    "train: images": ([*TRAIN, *FOLDER], ["data.path: nowhere is not a folder"]),
    "train: no path of images": ([*TRAIN, "--set", "data.source=imagefolder"], ["imagefolder needs data.path"]),
    "train: shards": ([*TRAIN, *SHARDS], ["no shards in divided: expected divided/*.tar"]),
    "train: weights": ([*TRAIN, "--set", "model.init=no.safetensors"], ["model.init: no checkpoint at no.safetensors"]),
    "train: weights without a hash": (
        [*TRAIN, "--set", "model.init=https://example.org/w.safetensors"],
        ["init is an https address: give the SHA-256 of its file as init_sha256"],
    ),
    "train: weights over http": (
        [*TRAIN, "--set", "model.init=http://example.org/w.safetensors"],
        ["model.init: cannot fetch http://example.org/w.safetensors: use https://"],
    ),
    "train: a repository without an owner": (
        [*TRAIN, "--set", "model.init=hf-hub:name"],
        ["model.init: hf-hub:name is not of the form hf-hub:OWNER/NAME"],
    ),
    "train: a folder that is not a run": ([*TRAIN, "--resume", "--output", "divided"], ["there is no run in divided"]),
    "evaluate: checkpoint": ([*EVALUATE, "nowhere"], ["no checkpoint at nowhere"]),
    "evaluate: images": ([*EVALUATE, "weights.pth", *FOLDER], ["data.path: nowhere is not a folder"]),
    "evaluate: predictions": (
        [*EVALUATE, "weights.pth", "--predictions", "nowhere/p.csv"],
        ["--predictions nowhere/p.csv: nowhere is not a folder"],
    ),
    "benchmark: images": ([*BENCHMARK, "--real-data", *FOLDER], ["data.path: nowhere is not a folder"]),
    "predict: checkpoint": (["predict", "nowhere", "divided"], ["no checkpoint at nowhere"]),
    "convert: target in a file": (
        ["convert", "weights.pth", "tiny.yaml/out.safetensors", "--to", "timm"],
        ["tiny.yaml/out.safetensors cannot be made: tiny.yaml is not a folder: give another path"],
    ),
    "convert: target that exists": (
        ["convert", "weights.pth", "divided", "--to", "native"],
        ["divided is already there"],
    ),
    "convert: source": (["convert", "nowhere", "out.safetensors", "--to", "timm"], ["no checkpoint at nowhere"]),
    "pack: source": (["pack", "nowhere", "shards"], ["nowhere is not a folder"]),
    "pack: target that is a file": (["pack", "divided", "tiny.yaml"], ["tiny.yaml is a file: give another TARGET"]),
    "pack: target in a file": (["pack", "divided", "tiny.yaml/shards"], ["tiny.yaml is not a folder: give another"]),
    "plan: output in a file": (
        ["plan", "tiny.yaml", "--search", "--output", "tiny.yaml/plans"],
        ["--output tiny.yaml/plans: tiny.yaml is not a folder: give another folder"],
    ),
    "report: run": (["report", "nowhere"], ["nowhere is not a run folder"]),
    "report: one of several runs": (["report", "nowhere", "elsewhere"], ["nowhere is not a run folder"]),
    "report: output": (["report", "divided", "--output", "nowhere/r.html"], ["nowhere is not a folder: make it first"]),
}


def forbid_work(monkeypatch):
    """Makes the test fail if a command reads weights, opens images, builds a model, or searches."""

    def fail(*arguments, **options):
        raise AssertionError("this must not be reached")

    for name in ("train", "evaluate", "predict", "benchmark"):
        monkeypatch.setattr(import_module(f"vit_ipu.{name}"), "open_backend", fail)
    for name in ("train", "evaluate"):
        monkeypatch.setattr(import_module(f"vit_ipu.{name}"), "open_source", fail)
    monkeypatch.setattr(import_module("vit_ipu.weights.read"), "read_tensors", fail)
    monkeypatch.setattr(import_module("vit_ipu.data.packing.splits"), "open_folders", fail)
    monkeypatch.setattr(import_module("vit_ipu.plan"), "search", fail)


def assert_only_line(monkeypatch, capsys, command, expected):
    before = sorted(Path().rglob("*"))
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert (code, out) == (2, ""), err
    assert err.startswith("vit-ipu: ")
    assert err.count("\n") == 1
    for text in expected:
        assert text in err
    assert sorted(Path().rglob("*")) == before


@pytest.fixture
def here(empty_folder, monkeypatch):
    write_config(empty_folder)
    write_image_folder(empty_folder / "divided")
    (empty_folder / "weights.pth").write_bytes(b"not read")
    forbid_work(monkeypatch)


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_in_a_path_is_the_only_line(here, monkeypatch, capsys, name):
    assert_only_line(monkeypatch, capsys, *MISTAKES[name])


CLOSED = {
    "convert": (["convert", "weights.pth", "out.pth", "--to", "torchvision"], "out.pth cannot be made: . cannot be"),
    "pack": (["pack", "divided", "shards"], ". cannot be written: give another TARGET"),
    "plan": (["plan", "tiny.yaml", "--search", "--output", "plans"], "--output plans: . cannot be written"),
    "report": (["report", "divided", "--output", "r.html"], "--output r.html: . cannot be written"),
    "evaluate": ([*EVALUATE, "weights.pth", "--predictions", "p.csv"], "--predictions p.csv: . cannot be written"),
    "init": (["init", "divided", "--output", "new.yaml"], "--output new.yaml: . cannot be written"),
}


@pytest.mark.parametrize("name", list(CLOSED))
def test_a_folder_that_cannot_be_written_is_the_only_line(here, monkeypatch, capsys, name):
    command, expected = CLOSED[name]
    monkeypatch.setattr("vit_ipu.files.os.access", lambda path, mode: not mode & os.W_OK)
    assert_only_line(monkeypatch, capsys, command, [expected])


def test_a_resumed_run_needs_its_first_weights_no_longer(empty_folder, monkeypatch, capsys, run):
    write_config(empty_folder, name="first")
    run("train", "first.yaml", "--device", "cpu", "--output", "first")
    write_config(empty_folder, model={"init": "first"})
    run("train", "tiny.yaml", "--device", "cpu", "--output", "second")
    (empty_folder / "first").rename(empty_folder / "moved")
    assert "resuming at update 4" in run("train", "tiny.yaml", "--device", "cpu", "--output", "second", "--resume")

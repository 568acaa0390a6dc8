"""Checkpoints of a run: complete or absent, and refused if damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import backend_for, equal_states, random_batch, tiny_config
from safetensors.torch import load_file, save_file

from vit_ipu import files
from vit_ipu.config import ModelConfig
from vit_ipu.errors import CheckpointError, DamagedCheckpoint
from vit_ipu.files import write_checksums
from vit_ipu.model import ViT
from vit_ipu.runs.checkpoint import (
    Progress,
    load_checkpoint,
    load_resumable,
    remove_old_checkpoints,
    save_checkpoint,
)
from vit_ipu.weights import native
from vit_ipu.weights.fit import require_same_model
from vit_ipu.weights.native import ModelDescription, find_checkpoints, load_description, load_tensors, newest_checkpoint

CLASSES = tuple(f"class {n}" for n in range(10))
CONFIG = tiny_config(optim={"optimizer": "adamw"}, model={"dropout": 0.1}, run={"updates": 1000})


def state_after(updates=1, device="cpu"):
    backend = backend_for(CONFIG, device)
    for seed in range(updates):
        backend.train_step(random_batch(CONFIG, seed), 0.01)
    return backend.state_dict()


def save(folder, update, state=None, device_kind="cpu"):
    progress = Progress(update, update, update * 32)
    return save_checkpoint(
        folder, state or state_after(), progress, ModelDescription.of_run(CONFIG, CLASSES, 96), device_kind=device_kind
    )


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_everything_comes_back_bit_for_bit(tmp_path, device):
    state = state_after(2, device)
    path = save(tmp_path, 6, state, device)
    loaded, progress = load_checkpoint(path, device_kind=device)
    assert equal_states(loaded, state)
    assert progress == Progress(6, 6, 192)
    assert load_description(path) == ModelDescription.of_run(CONFIG, CLASSES, 96)
    assert equal_states(load_tensors(path / "model.safetensors"), state["model"])


def test_a_checkpoint_is_safetensors_and_json_under_timms_names(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert "blocks.3.mlp.fc2.weight" in load_file(str(path / "model.safetensors"))
    assert json.loads((path / "config.json").read_text())["id2label"]["7"] == "class 7"


def test_the_newest_checkpoint_has_the_highest_update_and_old_ones_are_removed(tmp_path):
    state = state_after()
    for update in (9, 10, 100):
        save(tmp_path, update, state)
    (tmp_path / ".writing-update-00000200").mkdir()
    assert newest_checkpoint(tmp_path).name == "update-00000100"
    remove_old_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-00000010", "update-00000100"]


STEPS = [(native, "save_file"), (Path, "write_text"), (files, "sync_entry"), (os, "replace")]


@pytest.mark.parametrize(("target", "failing"), STEPS, ids=lambda value: str(value) if isinstance(value, str) else "")
@pytest.mark.parametrize("at_call", [1, 2])
def test_a_crash_at_any_step_leaves_the_previous_checkpoint(tmp_path, monkeypatch, target, failing, at_call):
    first = save(tmp_path, 1)
    state = state_after(2)
    original, calls = getattr(target, failing), []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == (1 if failing == "replace" else at_call):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(target, failing, crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, state)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path) == first
    load_checkpoint(first, device_kind="cpu")
    second = save(tmp_path, 2, state)  # what the crash left behind is replaced
    assert newest_checkpoint(tmp_path) == second
    assert equal_states(load_checkpoint(second, device_kind="cpu")[0], state)


def test_saving_an_update_again_keeps_what_is_there(tmp_path):
    path = save(tmp_path, 1)
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert save(tmp_path, 1) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_checkpoints_are_found_in_run_folders_and_by_their_own_path(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 3)
    assert find_checkpoints(path) == [path]
    assert find_checkpoints(tmp_path / "run") == [path]
    assert find_checkpoints(tmp_path / "run" / "checkpoints") == [path]
    newer = save(tmp_path / "run" / "checkpoints", 4)
    assert find_checkpoints(tmp_path / "run") == [path, newer]
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a run folder or a checkpoint folder"):
        find_checkpoints(tmp_path)
    (tmp_path / "early" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="early has no checkpoint yet: let the run train on, or continue it with"):
        find_checkpoints(tmp_path / "early")


DAMAGES = [
    ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:100]), "cannot read .*model.safetensors"),
    ("model.safetensors", lambda p: p.unlink(), "cannot read .*model.safetensors"),
    ("optimizer.safetensors", lambda p: p.write_bytes(b"\xff" * 64), "cannot read .*optimizer.safetensors"),
    ("state.json", lambda p: p.write_text("{"), "cannot read .*state.json"),
    ("state.json", lambda p: p.write_text("{}"), "state.json is damaged"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path, name, damage, message):
    path = save(tmp_path, 1)
    damage(path / name)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, device_kind="cpu")


@pytest.mark.parametrize("text", ["{}", '{"id2label": {"1": "a"}, "config": {}}', '{"id2label": {}, "config": 3}'])
def test_a_damaged_description_is_refused(tmp_path, text):
    path = save(tmp_path, 1)
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        load_description(path)


def test_an_optimizers_file_of_another_model_is_refused(tmp_path):
    path = save(tmp_path, 1)
    save_file({"else": torch.zeros(1)}, str(path / "optimizer.safetensors"))
    write_checksums(path)
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors is damaged: it lacks"):
        load_checkpoint(path, device_kind="cpu")


def test_a_folder_without_a_state_is_a_damaged_checkpoint_and_is_replaced(tmp_path):
    path = save(tmp_path, 1)
    (path / "state.json").unlink()
    with pytest.raises(DamagedCheckpoint, match="cannot read .*state.json: state.json is missing"):
        load_checkpoint(path, device_kind="cpu")
    state = state_after(2)
    assert equal_states(load_checkpoint(save(tmp_path, 1, state), device_kind="cpu")[0], state)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ModelDescription.of_run(CONFIG, CLASSES, 95),
            r"96 images of 10 classes \(class 0, ...\), but data.path holds 95 of 10",
        ),
        (
            ModelDescription.of_run(CONFIG, ("cat", *CLASSES[1:]), 96),
            r"holds 96 of 10 \(cat, ...\): give the same images",
        ),
    ],
)
def test_a_run_resumes_only_on_the_same_images(tmp_path, other, message):
    path = save(tmp_path, 1)
    load_resumable(path, ModelDescription.of_run(CONFIG, CLASSES, 96), device_kind="cpu")
    with pytest.raises(CheckpointError, match=message):
        load_resumable(path, other, device_kind="cpu")


def test_a_run_resumes_only_on_the_kind_of_device_that_it_began_on(tmp_path):
    path = save(tmp_path, 1, state_after(1, "ipu-sim"), "ipu-sim")
    with pytest.raises(CheckpointError, match=r"made on ipu-sim and cannot be resumed on cpu.*--set model.init="):
        load_checkpoint(path, device_kind="cpu")
    native = save(tmp_path, 2)
    assert load_checkpoint(native, device_kind="cuda")[1].update == 2  # cpu and cuda are one kind


def test_weights_of_another_model_are_refused(tmp_path):
    path = save(tmp_path, 1)
    other = ViT(ModelConfig(variant="vit_test", image_size=28, num_classes=11)).state_dict()
    with pytest.raises(CheckpointError, match=r"head.weight has shape \(10, 32\) there and \(11, 32\) in the config"):
        require_same_model(load_tensors(path / "model.safetensors"), other, "x")
    deeper = ViT(ModelConfig(variant="vit_test", depth=5, image_size=28, num_classes=10)).state_dict()
    with pytest.raises(CheckpointError, match="of another model: blocks.4"):
        require_same_model(load_tensors(path / "model.safetensors"), deeper, "x")

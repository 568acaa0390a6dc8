"""Checkpoints: whole or not at all, damaged ones refused, and weights to start from."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from helpers import backend_for, equal_states, random_batch, tiny_config
from safetensors.torch import load_file, save_file

from vit_ipu.checkpoints import run_state
from vit_ipu.checkpoints.formats import load_init, resize_pos_embed
from vit_ipu.checkpoints.run_state import (
    CheckpointError,
    Description,
    Progress,
    find_checkpoint,
    load_checkpoint,
    load_description,
    load_matching_weights,
    load_resumable,
    load_weights,
    newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from vit_ipu.config import ModelConfig, RunFailed
from vit_ipu.model import ViT, image_size_of

CLASSES = tuple("class {}".format(n) for n in range(10))
CONFIG = tiny_config(optim={"optimizer": "adamw"}, model={"dropout": 0.1})


def state_after(updates=1, device="cpu"):
    backend = backend_for(CONFIG, device)
    for seed in range(updates):
        backend.train_step(random_batch(CONFIG, seed), 0.01)
    return backend.state_dict()


def save(folder, update, state=None, device_kind="cpu"):
    progress = Progress(update, update, update * 32)
    return save_checkpoint(
        folder, state or state_after(), progress, Description(CONFIG, CLASSES, 96), device_kind=device_kind
    )


@pytest.mark.parametrize("device", ["cpu", "ipu-sim"])
def test_everything_comes_back_bit_for_bit(tmp_path, device):
    state = state_after(2, device)
    path = save(tmp_path, 6, state, device)
    loaded, progress = load_checkpoint(path, device_kind=device)
    assert equal_states(loaded, state)
    assert progress == Progress(6, 6, 192)
    assert load_description(path) == Description(CONFIG, CLASSES, 96)
    assert equal_states(load_weights(path), state["model"])


def test_a_checkpoint_is_safetensors_and_json_under_timms_names(tmp_path):
    path = save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert "blocks.3.mlp.fc2.weight" in load_file(str(path / "model.safetensors"))
    assert json.loads((path / "config.json").read_text())["id2label"]["7"] == "class 7"


def test_newest_is_by_update_and_old_ones_go(tmp_path):
    state = state_after()
    for update in (9, 10, 100):
        save(tmp_path, update, state)
    (tmp_path / ".writing-update-00000200").mkdir()
    assert newest_checkpoint(tmp_path).name == "update-00000100"
    remove_old_checkpoints(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-00000010", "update-00000100"]


@pytest.mark.parametrize("failing", ["save_file", "_write_json", "_sync", "rename"])
@pytest.mark.parametrize("at_call", [1, 2])
def test_a_crash_at_any_step_leaves_the_previous_checkpoint(tmp_path, monkeypatch, failing, at_call):
    first = save(tmp_path, 1)
    state = state_after(2)
    target = os if failing == "rename" else run_state
    original, calls = getattr(target, failing), []

    def crash(*args, **kwargs):
        calls.append(1)
        if len(calls) == (1 if failing == "rename" else at_call):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(target, failing, crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, state)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path) == first
    load_checkpoint(first, device_kind="cpu")
    second = save(tmp_path, 2, state)  # what was left behind is no obstacle
    assert newest_checkpoint(tmp_path) == second
    assert equal_states(load_checkpoint(second, device_kind="cpu")[0], state)


def test_saving_an_update_again_keeps_what_is_there(tmp_path):
    path = save(tmp_path, 1)
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert save(tmp_path, 1) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before


def test_checkpoints_are_found_in_run_folders_and_by_their_own_path(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 3)
    assert find_checkpoint(path) == path
    assert find_checkpoint(tmp_path / "run") == path
    assert find_checkpoint(tmp_path / "run" / "checkpoints") == path
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a run folder or a checkpoint folder"):
        find_checkpoint(tmp_path)


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
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors is damaged: it lacks"):
        load_checkpoint(path, device_kind="cpu")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    first = save(tmp_path, 1)
    state = state_after()
    state["model"]["norm.weight"][3] = float("nan")
    with pytest.raises(RunFailed, match="norm.weight is not finite after update 2: lower optim.learning_rate"):
        save(tmp_path, 2, state)
    assert list(tmp_path.iterdir()) == [first]


def test_a_folder_without_a_state_is_no_checkpoint_and_is_replaced(tmp_path):
    path = save(tmp_path, 1)
    (path / "state.json").unlink()
    assert newest_checkpoint(tmp_path) is None
    state = state_after(2)
    assert equal_states(load_checkpoint(save(tmp_path, 1, state), device_kind="cpu")[0], state)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Description(CONFIG, CLASSES, 95), r"96 images of 10 classes \(class 0, ...\), but data.path holds 95 of 10"),
        (Description(CONFIG, ("cat", *CLASSES[1:]), 96), r"holds 96 of 10 \(cat, ...\): give the same images"),
    ],
)
def test_a_run_resumes_on_the_same_images(tmp_path, other, message):
    path = save(tmp_path, 1)
    load_resumable(path, Description(CONFIG, CLASSES, 96), device_kind="cpu")
    with pytest.raises(CheckpointError, match=message):
        load_resumable(path, other, device_kind="cpu")


def test_a_run_resumes_on_the_kind_of_device_that_it_began_on(tmp_path):
    path = save(tmp_path, 1, state_after(1, "ipu-sim"), "ipu-sim")
    with pytest.raises(CheckpointError, match=r"made on ipu-sim and cannot be resumed on cpu.*--set model.init="):
        load_checkpoint(path, device_kind="cpu")
    native = save(tmp_path, 2)
    assert load_checkpoint(native, device_kind="cuda")[1].update == 2  # cpu and cuda are one kind


def test_weights_of_another_model_are_refused(tmp_path):
    path = save(tmp_path, 1)
    other = ViT(ModelConfig(variant="vit_test", image_size=28, num_classes=11)).state_dict()
    with pytest.raises(CheckpointError, match=r"head.weight has shape \(10, 32\) there and \(11, 32\) in the config"):
        load_matching_weights(path, other)
    deeper = ViT(ModelConfig(variant="vit_test", depth=5, image_size=28, num_classes=10)).state_dict()
    with pytest.raises(CheckpointError, match="of another model: blocks.4"):
        load_matching_weights(path, deeper)


# ------------------------------------------------------------------------------------- model.init


def fresh(**changes):
    torch.manual_seed(1)
    return ViT(ModelConfig(**{"variant": "vit_test", "image_size": 28, "num_classes": 10, **changes})).state_dict()


def write_init(tmp_path, state):
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
    return str(path)


def test_init_takes_every_weight_that_fits(tmp_path):
    source = fresh()
    own = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    assert equal_states(load_init(write_init(tmp_path, source), own), dict(source))


def test_init_from_a_checkpoint_and_from_a_run_folder(tmp_path):
    state = state_after()
    path = save(tmp_path / "checkpoints", 1, state)
    for source in (path, tmp_path):
        assert equal_states(load_init(str(source), fresh()), dict(state["model"]))


def test_init_gives_another_number_of_classes_a_zero_head(tmp_path):
    source = {name: tensor + 1 for name, tensor in fresh(num_classes=21843).items()}
    loaded = load_init(write_init(tmp_path, source), fresh())
    assert not loaded["head.weight"].any()
    assert not loaded["head.bias"].any()
    assert torch.equal(loaded["norm.weight"], source["norm.weight"])


def test_init_resizes_position_embeddings_as_timm_does(tmp_path):
    from timm.layers import resample_abs_pos_embed

    source = fresh(image_size=42)
    loaded = load_init(write_init(tmp_path, source), fresh(image_size=70))
    expected = resample_abs_pos_embed(source["pos_embed"], [10, 10], num_prefix_tokens=1)
    torch.testing.assert_close(loaded["pos_embed"], expected, rtol=0, atol=1e-7)
    assert image_size_of(loaded) == (70, 7)


@pytest.mark.parametrize(("old", "new"), [(16, 16), (16, 49), (196, 576), (49, 16)])
def test_resize_equals_timms(old, new):
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(0)
    embedding = torch.randn(1, 1 + old, 8)
    expected = resample_abs_pos_embed(embedding, [int(new**0.5)] * 2, num_prefix_tokens=1)
    torch.testing.assert_close(resize_pos_embed(embedding, new), expected, rtol=0, atol=1e-6)


def test_init_drops_or_makes_a_representation_layer_as_the_config_says(tmp_path):
    with_layer, without = fresh(representation_size=32), fresh()
    assert set(load_init(write_init(tmp_path, with_layer), without)) == set(without)
    loaded = load_init(write_init(tmp_path, without), with_layer)
    assert torch.equal(loaded["pre_logits.fc.weight"], with_layer["pre_logits.fc.weight"])


INIT_MISTAKES = [
    (lambda state: {"vit." + name: tensor for name, tensor in state.items()}, "not this model's weights.*no cls_token"),
    (lambda state: dict(state, extra=torch.zeros(1)), "extra is unknown"),
    (lambda state: dict(state, pos_embed=torch.zeros(1, 16, 32)), "not that of a class token and a square grid"),
    (lambda state: dict(state, pos_embed=torch.zeros(17, 32)), "not that of a class token and a square grid"),
    (lambda state: dict(state, pos_embed=torch.zeros(1, 1, 32)), "not that of a class token and a square grid"),
    (lambda state: fresh(width=64, num_heads=2), r"shape \(1, 1, 64\) but the model needs \(1, 1, 32\)"),
]


@pytest.mark.parametrize(("change", "message"), INIT_MISTAKES)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_init(write_init(tmp_path, change(fresh())), fresh())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pth", "expected a checkpoint folder, a run folder or a .safetensors file"),
        ("https://example.org/weights.pth", "expected a checkpoint folder"),
        ("nowhere.safetensors", "cannot read it"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_init(name, fresh())


def test_a_folder_without_checkpoints_is_no_init(tmp_path):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_init(str(tmp_path), fresh())

"""Settings that tensors do not show (heads, GELU, pooling, pixels): read from where they are stated, or refused."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import timm
import torch
from foreign import assert_same_logits, google_arrays, native_model, randomise
from safetensors.torch import save_file
from tiny_weights import quiet, tiny_state

from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.weights import export_formats
from vit_ipu.weights.describe import model_config
from vit_ipu.weights.export import convert
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours, recognise, to_ours


def test_the_number_of_heads_is_read_from_flax_kernels(tmp_path):
    np.savez(tmp_path / "w.npz", **google_arrays(tiny_state(), num_heads=4))
    weights = read_weights(str(tmp_path / "w.npz"))
    assert model_config(weights).num_heads == 4
    with pytest.raises(CheckpointError, match="w.npz has 4 attention heads, not 2: leave out --num-heads$"):
        model_config(weights, num_heads=2)
    arrays = google_arrays(tiny_state(), num_heads=2)
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
    np.savez(tmp_path / "mixed.npz", **dict(arrays, **{name: arrays[name].reshape(32, 4, 8)}))
    with pytest.raises(CheckpointError, match="its blocks have . and . attention heads"):
        read_weights(str(tmp_path / "mixed.npz"))


@pytest.mark.parametrize(("to", "name"), [("timm", "t.safetensors"), ("mmpretrain", "m.pth")])
def test_our_files_state_settings_that_tensors_do_not_show(tmp_path, to, name):
    np.savez(tmp_path / "w.npz", **google_arrays(tiny_state(), num_heads=4))
    convert(str(tmp_path / "w.npz"), tmp_path / name, to, notify=quiet)
    found = model_config(read_weights(str(tmp_path / name), trust_pickle=True))
    assert (found.num_heads, found.gelu, found.layer_norm_eps) == (4, "tanh", 1e-6)
    with pytest.raises(CheckpointError, match="has 4 attention heads, not 2"):
        convert(str(tmp_path / name), tmp_path / "x", "native", num_heads=2, trust_pickle=True, notify=quiet)


@pytest.mark.parametrize("number", ["00", "\u0663", "2000000000", "5" * 5000])
def test_a_block_number_has_one_spelling_and_a_limit(tmp_path, number):
    """Refuses a second spelling of a number, and a number so large that counting to it would never end."""
    state = dict(tiny_state(), **{f"blocks.{number}.norm1.weight": torch.ones(32)})
    save_file(state, str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match="not a plain ViT: 1 of its keys"):
        read_weights(str(tmp_path / "w.safetensors"))


def test_attention_without_biases_gets_zero_biases(tmp_path):
    torch.manual_seed(0)
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, qkv_bias=False).eval())
    save_file(theirs.state_dict(), str(tmp_path / "w.safetensors"))
    assert_same_logits(theirs, native_model(str(tmp_path / "w.safetensors")), 32)


def test_averaged_weights_are_preferred_as_in_timm(tmp_path):
    state, averaged = tiny_state(), {key: tensor + 1 for key, tensor in tiny_state().items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, str(tmp_path / "w.pth"))
    read = read_weights(str(tmp_path / "w.pth"), trust_pickle=True).tensors
    assert torch.equal(read["norm.weight"], averaged["norm.weight"])


def test_a_lightning_modules_prefix_is_stripped():
    theirs = {"model." + key: tensor for key, tensor in tiny_state().items()}
    assert set(to_ours(theirs, recognise(theirs, "x"), "x")) == set(tiny_state())


TIMM_FOLDERS = [
    ({"model_args": {"global_pool": "avg"}}, "its global_pool is avg, not the class token"),
    ({"global_pool": "map"}, "its global_pool is map, not the class token"),
    ({"model_args": {"norm_layer": "rmsnorm"}}, "its norm_layer rmsnorm is not known"),
    ({"model_args": {"act_layer": "relu"}}, "its act_layer relu is not one of gelu"),
    ({"model_args": {"img_size": [64, 144]}}, "its images are 64 x 144 pixels, but only square images are supported"),
    ({"model_args": {"num_heads": 0}}, "its number of attention heads is 0, not a whole number from 1"),
    ({"pretrained_cfg": {"crop_pct": 0, "input_size": [3, 28, 28]}}, "config.json: damaged: .*zero"),
]


@pytest.mark.parametrize(("config", "message"), TIMM_FOLDERS)
def test_unsupported_settings_of_a_timm_folder_are_refused(tmp_path, config, message):
    save_file(tiny_state(), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(dict({"architecture": "vit_tiny_patch16_224"}, **config)))
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path))


def test_heads_and_activation_are_read_from_a_timm_folder(tmp_path):
    save_file(tiny_state(), str(tmp_path / "model.safetensors"))
    arguments = {"embed_dim": 32, "depth": 4, "patch_size": 7, "num_heads": 4, "act_layer": "gelu_tanh"}
    stated = {"architecture": "vit_tiny_patch16_224", "model_args": arguments, "label_names": "abcde"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    weights = read_weights(str(tmp_path))
    assert (model_config(weights).num_heads, weights.metadata.gelu, weights.metadata.classes) == (4, "tanh", ())


@pytest.mark.parametrize("pixels", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}, {}])
def test_pixel_statistics_are_read_from_the_processors_config(tmp_path, pixels):
    """Checks (pixel * factor - mean) / std for a pixel of 200."""
    save_file(from_ours(tiny_state(), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2}))
    stated = dict({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}, **pixels)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    metadata = read_weights(str(tmp_path)).metadata
    value = 200 * (stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1)
    value = (value - 0.4) / 0.2 if stated.get("do_normalize", True) else value
    assert (200 / 255 - metadata.mean[0]) / metadata.std[0] == pytest.approx(value)


HUGGINGFACE_FOLDERS = [
    ({"image_size": [64, 144]}, "its images are 64 x 144 pixels, but only square images are supported"),
    ({"id2label": {"0": "a", "2": "b"}}, "its id2label has no label 1"),
    ({"num_attention_heads": 0}, "damaged: its number of attention heads is 0, not a whole number from 1"),
    ({"hidden_act": "quick_gelu"}, r"^[^:]*config.json: its hidden_act quick_gelu is not one of"),
]


@pytest.mark.parametrize(("config", "message"), HUGGINGFACE_FOLDERS)
def test_unsupported_settings_of_a_hugging_face_folder_are_refused(tmp_path, config, message):
    save_file(from_ours(tiny_state(), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    stated = dict({"model_type": "vit", "num_attention_heads": 2}, **config)
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path))


DAMAGED_FILES = [
    ("preprocessor_config.json", {"rescale_factor": 0}, "float division by zero"),
    ("preprocessor_config.json", {"rescale_factor": "1/255"}, "could not convert string to float"),
    ("config.json", {"model_type": "vit", "id2label": 3}, "object of type 'int' has no len"),
]


@pytest.mark.parametrize(("name", "values", "reason"), DAMAGED_FILES)
def test_a_damaged_file_of_a_folder_is_named(tmp_path, name, values, reason):
    save_file(from_ours(tiny_state(), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2}))
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"^{tmp_path / name}: damaged: {reason}"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize("stated", ["{}", "[", "[" * 100_000, '{"num_heads": 0, "layer_norm_eps": 1, "gelu": "erf"}'])
@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors"])
def test_metadata_that_is_damaged_is_that_of_the_file(tmp_path, name, stated):
    save_file(tiny_state(), str(tmp_path / name), {"vit_ipu": stated})
    with pytest.raises(CheckpointError, match=f"^{tmp_path / name}: damaged: "):
        read_weights(str(tmp_path))


def test_a_description_that_is_not_a_small_file_is_refused(tmp_path):
    save_file(tiny_state(), str(tmp_path / "model.safetensors"))
    os.mkfifo(str(tmp_path / "config.json"))
    with pytest.raises(CheckpointError, match="config.json: it is not a regular file$"):
        read_weights(str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="config.json: it leads out of that folder: put the file there$"):
        read_weights(str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text("[" * 200000)
    with pytest.raises(CheckpointError, match="cannot read .*config.json"):
        read_weights(str(tmp_path))


def test_a_target_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    save_file(tiny_state(), str(tmp_path / "w.safetensors"))

    def fail(*arguments):
        raise RuntimeError("[enforce fail at inline_container.cc:746] . open file failed\nmore")

    monkeypatch.setitem(export_formats.WRITERS, "torchvision", fail)
    with pytest.raises(UserError, match="cannot write .*x.pth: .enforce fail .* open file failed$"):
        convert(str(tmp_path / "w.safetensors"), tmp_path / "x.pth", "torchvision", num_heads=2, notify=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_convert_leaves_the_head_out_on_the_command_line(tmp_path, monkeypatch, capsys):
    from helpers import vit_ipu

    save_file(tiny_state(), str(tmp_path / "w.safetensors"))
    source, target = str(tmp_path / "w.safetensors"), str(tmp_path / "f.safetensors")
    command = ["convert", source, target, "--to", "timm", "--features", "--num-heads", "2"]
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
    assert read_weights(target).num_classes == 0

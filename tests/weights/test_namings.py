"""Namings: models of other libraries compute the same logits here, and ours there; every format is read as written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign import (
    SHAPES,
    SIZES,
    assert_same_logits,
    google_arrays,
    huggingface_model,
    mmpretrain_state,
    native_model,
    randomise,
    stacked,
    timm_model,
    torchvision_model,
)
from safetensors.torch import load_file, save_file
from tiny_weights import TINY, WITH_LAYER, quiet, state_of

from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.weights.describe import describe, model_config
from vit_ipu.weights.export import convert, unsupported_settings
from vit_ipu.weights.export_formats import FORMATS
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import load_description
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours, recognise, to_ours

SMALL = [("tiny", 16, 64), ("small", 16, 64)]
LARGE = [(size, patch, pixels) for size, patch in SIZES for pixels in (224, 384)]
MAKERS = {"timm": timm_model, "huggingface": huggingface_model, "torchvision": torchvision_model}


# ---------------------------------------------------------- their models here, and ours in their libraries


@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize(("size", "patch", "pixels"), SMALL)
def test_random_models_of_other_libraries_give_the_same_logits_here(tmp_path, library, size, patch, pixels):
    theirs, source = MAKERS[library](size, patch, pixels, tmp_path)
    assert_same_logits(theirs, native_model(str(source), SHAPES[size][2]), pixels)


@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize(("size", "patch", "pixels"), SMALL)
def test_our_models_give_the_same_logits_in_other_libraries(tmp_path, library, size, patch, pixels):
    _, source = timm_model(size, patch, pixels, tmp_path)
    target = tmp_path / ("out" if library == "huggingface" else "out.pth")
    heads = SHAPES[size][2]
    convert(str(source), target, library, num_heads=heads, notify=quiet)
    theirs, _ = MAKERS[library](size, patch, pixels, tmp_path, load=target)
    assert_same_logits(theirs, native_model(str(source), heads), pixels, compare_epsilon=library == "huggingface")


@pytest.mark.slow
@pytest.mark.parametrize("library", MAKERS)
@pytest.mark.parametrize(("size", "patch", "pixels"), LARGE)
def test_large_models_give_the_same_logits_both_ways(tmp_path, library, size, patch, pixels):
    theirs, source = MAKERS[library](size, patch, pixels, tmp_path)
    ours = native_model(str(source), SHAPES[size][2])
    assert_same_logits(theirs, ours, pixels, bound=2e-6 if (size, patch) == ("base", 16) else 1e-5)
    del theirs
    target = tmp_path / ("out" if library == "huggingface" else "out.pth")
    convert(str(source), target, library, num_heads=SHAPES[size][2], notify=quiet)
    theirs, _ = MAKERS[library](size, patch, pixels, tmp_path, load=target)
    assert_same_logits(theirs, ours, pixels)


# ------------------------------------------------------------------------------------ every format


@pytest.mark.parametrize("name", NAMINGS)
@pytest.mark.parametrize("config", [TINY, WITH_LAYER], ids=["plain", "pre_logits"])
def test_a_round_trip_through_names_is_bit_equal(name, config):
    naming, state = NAMINGS[name], state_of(config)
    if config.representation_size and not naming.has_pre_logits:
        with pytest.raises(CheckpointError, match=f"{name} has no place for pre_logits.*: .* no representation layer$"):
            from_ours(state, naming, num_heads=2)
        return
    theirs = from_ours(state, naming, num_heads=2)
    assert recognise(theirs, "x") is naming
    back = to_ours(theirs, naming, "x")
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_tensor_that_a_library_lacks_is_named():
    message = "^torchvision has no name for blocks.0.ls1.gamma: write another format, such as native$"
    with pytest.raises(CheckpointError, match=message):
        from_ours({"blocks.0.ls1.gamma": torch.ones(32)}, NAMINGS["torchvision"], num_heads=2)


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "onnx"])
def test_a_round_trip_through_files_is_bit_equal(tmp_path, to):
    state = state_of(TINY)
    save_file(state, str(tmp_path / "start.safetensors"))
    convert(str(tmp_path / "start.safetensors"), tmp_path / "native", "native", num_heads=2, notify=quiet)
    suffix = {"torchvision": ".pth", "mmpretrain": ".pth", "google": ".npz", "graphcore": ".bin"}.get(to, "")
    convert(str(tmp_path / "native"), tmp_path / ("there" + suffix), to, notify=quiet)
    convert(
        str(tmp_path / ("there" + suffix)), tmp_path / "back", "native", num_heads=2, trust_pickle=True, notify=quiet
    )
    back = load_file(str(tmp_path / "back" / "model.safetensors"))
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("to", ["huggingface", "mmpretrain", "native"])
def test_class_names_are_kept_by_a_conversion(tmp_path, to):
    _, source = huggingface_model("tiny", 16, 32, tmp_path, classes=["cat", "dog", "newt"])
    target = tmp_path / ("out.pth" if to == "mmpretrain" else "out")
    convert(str(source), target, to, notify=quiet)
    assert describe(read_weights(str(target), trust_pickle=True)).classes == ("cat", "dog", "newt")


def test_a_native_folder_states_all_settings_of_its_origin(tmp_path):
    _, source = huggingface_model("tiny", 16, 32, tmp_path, classes=["a", "b"])
    convert(str(source), tmp_path / "native", "native", notify=quiet)
    description = load_description(tmp_path / "native")
    model, pixels = description.model, description.preprocessing
    assert (model.num_heads, model.layer_norm_eps, model.gelu) == (3, 1e-12, "erf")
    assert (model.image_size, model.num_classes, pixels.mean) == (32, 2, (0.5, 0.5, 0.5))
    assert (description.classes, description.trained) == (("a", "b"), None)


def test_settings_that_a_format_cannot_state_are_noted():
    tanh = TINY.model_copy(update={"gelu": "tanh", "layer_norm_eps": 1e-12})
    for config, to in ((TINY, "timm"), (tanh, "huggingface"), (tanh, "native"), (tanh, "onnx")):
        assert unsupported_settings(config, to, as_file=True) == []
    assert len(unsupported_settings(tanh, "timm", as_file=True)) == 2
    assert len(unsupported_settings(tanh, "timm", as_file=False)) == 1  # its config.json names the activation
    first, second = unsupported_settings(tanh, "torchvision", as_file=True)
    assert first == "torchvision computes GELU as erf, but the model was trained with tanh"
    assert second == "torchvision has a layer norm epsilon of 1e-06, but the model was trained with 1e-12"


def test_features_are_written_as_weights_without_a_head(tmp_path):
    save_file(state_of(WITH_LAYER), str(tmp_path / "w.safetensors"))
    for to, name in (("timm", "f.safetensors"), ("google", "f.npz")):
        convert(str(tmp_path / "w.safetensors"), tmp_path / name, to, num_heads=2, features=True, notify=quiet)
        state = read_weights(str(tmp_path / name)).tensors
        assert set(state) == {key for key in state_of(TINY) if not key.startswith("head.")}
    for to, name in (("native", "x"), ("timm", "x"), ("onnx", "x.onnx")):
        with pytest.raises(UserError, match=f"--features writes weights without a head, not a complete {to} model"):
            convert(str(tmp_path / "w.safetensors"), tmp_path / name, to, num_heads=2, features=True, notify=quiet)


def test_an_odd_mlp_width_is_exact(tmp_path):
    config = TINY.model_copy(update={"width": 14, "mlp_ratio": 61.5 / 14})
    assert config.mlp_width == 61
    save_file(state_of(config), str(tmp_path / "w.safetensors"))
    assert model_config(read_weights(str(tmp_path / "w.safetensors")), num_heads=2).mlp_width == 61


# ------------------------------------------------------------------ layouts from the published names


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("style", ["vit_jax", "big_vision", "stacked"])
def test_google_files_of_every_kind_are_read(tmp_path, prefix, style):
    state = state_of(WITH_LAYER)
    arrays = google_arrays(state, num_heads=2, big_vision=style != "vit_jax")
    arrays = stacked(arrays) if style == "stacked" else arrays
    np.savez(tmp_path / "w.npz", **{prefix + key: value for key, value in arrays.items()})
    weights = read_weights(str(tmp_path / "w.npz"))
    assert weights.origin == "google"
    assert weights.metadata.gelu == "tanh"
    if prefix == "params/img/":  # the image tower of a model of images and text, whose head is a projection
        state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
        assert weights.metadata.embedding == 5
    assert set(weights.tensors) == set(state)
    assert all(torch.equal(weights.tensors[key], state[key]) for key in state)


def test_optimizer_state_in_a_google_file_is_ignored(tmp_path):
    arrays = {"opt/target/" + key: value for key, value in google_arrays(state_of(TINY), num_heads=2).items()}
    np.savez(tmp_path / "w.npz", **arrays, **{"opt/state/step": np.array(7), "opt/state/param_states/cls": np.zeros(3)})
    assert read_weights(str(tmp_path / "w.npz")).num_classes == 5


def test_position_embeddings_without_a_class_token_get_a_zero(tmp_path):
    """Covers big_vision, which adds position embeddings to patches only."""
    state = state_of(TINY)
    state["pos_embed"][:, 0] = 0
    arrays = google_arrays(state, num_heads=2, big_vision=True)
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    np.savez(tmp_path / "w.npz", **arrays)
    assert torch.equal(read_weights(str(tmp_path / "w.npz")).tensors["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("version", ["1.x", "0.23", "0.16", "backbone"])
def test_mmpretrain_files_of_every_version_are_read(tmp_path, version):
    state = state_of(WITH_LAYER)
    classes = ["one", "two", "three", "four", "five"]
    torch.save(mmpretrain_state(state, version, classes), str(tmp_path / "w.pth"))
    weights = read_weights(str(tmp_path / "w.pth"), trust_pickle=True)
    expected = {
        key: value for key, value in state.items() if version != "backbone" or not key.startswith(("head", "pre"))
    }
    assert weights.origin == "mmpretrain"
    assert set(weights.tensors) == set(expected)
    assert all(torch.equal(weights.tensors[key], expected[key]) for key in expected)
    assert weights.metadata.classes == (() if version == "backbone" else tuple(classes))


def test_other_spellings_of_names_are_read(tmp_path):
    """Covers torchvision's published files, and transformers 5 in memory without and with a pooler."""
    state = state_of(TINY)
    torchvision = from_ours(state, NAMINGS["torchvision"], num_heads=2)
    old = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): torchvision[key] for key in torchvision
    }
    assert_reads_as(state, old)
    new = {}
    renamed = {
        "encoder.layer": "layers",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    for key, tensor in from_ours(state, NAMINGS["huggingface"], num_heads=2).items():
        for before, after in renamed.items():
            key = key.replace(before, after)
        new[key] = tensor
    assert "vit.layers.3.attention.q_proj.weight" in new
    assert_reads_as(state, new)
    assert_reads_as(
        state, dict(new, **{"vit.pooler.dense.weight": torch.ones(32, 32), "vit.pooler.dense.bias": torch.ones(32)})
    )


def assert_reads_as(state, theirs):
    naming = recognise(theirs, "x")
    read = to_ours(theirs, naming, "x")
    assert set(read) == set(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("spelling", ["ls{}.gamma", "gamma_{}"])
def test_layer_scale_is_folded_in(tmp_path, spelling):
    """Compares with timm's model that has LayerScale, in the names of DINOv2 and of DeiT-3."""
    import timm

    torch.manual_seed(0)
    theirs = randomise(
        timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, init_values=0.1).eval(), std=0.1
    )
    state = {
        key.replace("ls1.gamma", spelling.format(1)).replace("ls2.gamma", spelling.format(2)): tensor
        for key, tensor in theirs.state_dict().items()
    }
    assert any("gamma" in key for key in state)
    save_file(dict(state, mask_token=torch.zeros(1, 192)), str(tmp_path / "w.safetensors"))
    assert_same_logits(theirs, native_model(str(tmp_path / "w.safetensors")), 32)

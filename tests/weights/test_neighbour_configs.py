"""A config.json is read beside weights of any file name, and does not silently change or hide weights of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from foreign import assert_same_logits, google_arrays, native_model, randomise
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from tiny_weights import tiny_state

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.choose import weight_file
from vit_ipu.weights.read import read_weights


def huggingface_model():
    """Returns a random model whose heads, epsilon and outputs its tensors do not show."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 2, "intermediate_size": 768, "image_size": 32, "patch_size": 16}
    outputs = {"num_labels": 4, "problem_type": "multi_label_classification"}
    return randomise(ViTForImageClassification(ViTConfig(num_attention_heads=6, **shape, **outputs)).eval(), std=0.1)


def assert_follows(model, source):
    weights = read_weights(str(source))
    assert (weights.metadata.num_heads, weights.metadata.problem_type) == (6, "multi_label_classification")
    assert weights.metadata.layer_norm_eps == 1e-12
    assert_same_logits(lambda images: model(images).logits, native_model(str(source)), 32, bound=1e-5)


# ------------------------------------------------------------------------------------ names of files


def test_the_files_of_a_variant_are_read_with_their_config(tmp_path):
    model = huggingface_model()
    model.save_pretrained(str(tmp_path / "whole"), variant="fp16")
    model.save_pretrained(str(tmp_path / "shards"), variant="fp16", max_shard_size="1MB")
    assert weight_file(tmp_path / "whole").name == "model.fp16.safetensors"
    assert weight_file(tmp_path / "shards").name == "model.safetensors.index.fp16.json"
    for folder in ("whole", "shards"):
        assert_follows(model, tmp_path / folder)


def test_variants_are_preferred_as_the_usual_files_are(tmp_path):
    names = ["other.pth", "pytorch_model.fp16.bin", "model.fp16.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
        assert weight_file(tmp_path).name == name
    (tmp_path / "model.bf16.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\(model.bf16.safetensors, model.fp16.safetensors\): name one of them"):
        weight_file(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert weight_file(tmp_path).name == "model.safetensors"


def test_a_renamed_file_is_read_with_its_config(tmp_path):
    model = huggingface_model()
    model.save_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "best.safetensors")
    assert_follows(model, tmp_path)
    assert_follows(model, tmp_path / "best.safetensors")


def test_another_architecture_is_refused_by_its_config_whatever_the_file_is_called(tmp_path):
    """Covers a model of which all tensors have names and shapes of a plain ViT."""
    model = timm.create_model("vit_small_patch16_rope_ape_224", img_size=32, num_classes=4)
    save_config_for_hf(model, tmp_path / "config.json", model_args={"img_size": 32})
    message = "config.json: its architecture vit_small_patch16_rope_ape_224 is not one of timm's plain ViTs"
    for name in ("model.safetensors", "best.safetensors"):
        save_file(model.state_dict(), str(tmp_path / name))
        for source in (tmp_path, tmp_path / name):
            with pytest.raises(CheckpointError, match=message):
                read_weights(str(source))
        (tmp_path / name).unlink()


# -------------------------------------------------------------------------- configs of other weights


OTHERS = [
    ('{"model_type": "bert"}', "its model_type is bert, not vit"),
    ('{"architecture": "resnet50"}', "its architecture resnet50 is not one of timm's plain ViTs"),
    ('{"architecture": "vit_tiny_patch16_224"}', "it describes a model of width 192, but the tensors have 32"),
    ("// mine", "Expecting value"),
]


@pytest.mark.parametrize(("content", "reason"), OTHERS)
def test_a_refusal_by_a_config_of_other_weights_says_what_to_do(tmp_path, content, reason):
    for name in ("w.safetensors", "model.safetensors"):
        save_file(tiny_state(), str(tmp_path / name))
    (tmp_path / "config.json").write_text(content)
    remedy = "; if it does not describe w.safetensors, move w.safetensors to a folder of its own$"
    with pytest.raises(CheckpointError, match=f"{tmp_path}/config.json: .*{reason}.*{remedy}"):
        read_weights(str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match=f"{tmp_path}/config.json: .*{reason}") as refusal:
        read_weights(str(tmp_path / "model.safetensors"))  # by its name, the config describes this file
    assert "if it does not describe" not in str(refusal.value)
    (tmp_path / "own").mkdir()
    (tmp_path / "w.safetensors").rename(tmp_path / "own" / "w.safetensors")
    assert read_weights(str(tmp_path / "own" / "w.safetensors")).origin == "timm"


def test_a_config_of_another_librarys_weights_is_left_out_with_a_note(tmp_path):
    """Covers Google's arrays, which have tanh GELU, in a folder of transformers, whose default is erf."""
    np.savez(tmp_path / "w.npz", **google_arrays(tiny_state(), num_heads=4))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": 1e-3}))
    notes = []
    metadata = read_weights(str(tmp_path / "w.npz"), notify=notes.append).metadata
    assert (metadata.gelu, metadata.layer_norm_eps, metadata.num_heads) == ("tanh", 1e-6, 4)
    assert notes == [
        f"note: {tmp_path}/config.json is left out: it describes weights in huggingface's naming, but those of w.npz "
        "are in google's"
    ]


@pytest.mark.parametrize("content", ["{}", '{"model": {"depth": 4}, "learning_rate": 0.1}'])
def test_a_config_of_another_program_is_not_read(tmp_path, content):
    save_file(tiny_state(), str(tmp_path / "w.safetensors"))
    (tmp_path / "config.json").write_text(content)
    notes = []
    assert read_weights(str(tmp_path), notify=notes.append).metadata.num_heads is None
    assert notes == []

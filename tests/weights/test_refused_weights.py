"""Weights that are not a plain ViT, and conversions that cannot be made: refused with what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_weights import TINY, quiet, state_of

from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.weights.describe import model_config
from vit_ipu.weights.export import convert
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours, to_ours


def timm_state():
    return from_ours(state_of(TINY), NAMINGS["timm"], num_heads=2)


FOREIGN = [
    (lambda s: {"conv1.weight": torch.zeros(1)}, "not a ViT in any known naming .*conv1.weight"),
    (lambda s: {}, "it holds no tensors"),
    (lambda s: dict(s, dist_token=s["cls_token"].clone()), "not a plain ViT: 1 of its keys .* timm: dist_token"),
    (lambda s: {"cls_token": s["cls_token"], "pos_embed": s["pos_embed"]}, "fit the namings timm and mmpretrain"),
    (lambda s: without(s, "blocks.2.mlp.fc1.bias"), "blocks.2.mlp.fc1.bias is missing"),
    (lambda s: without(s, "norm.weight"), "norm.weight is missing: give the weights of a complete ViT"),
    (lambda s: without(s, "patch_embed.proj.weight"), "patch_embed.proj.weight is missing"),
    (lambda s: {k: v for k, v in s.items() if not k.startswith("blocks.1.")}, "blocks.1.norm1.weight is missing"),
    (lambda s: dict(s, **{"norm.weight": torch.zeros(31)}), "norm.weight has shape .31,. where the other tensors"),
    (lambda s: dict(s, pos_embed=torch.zeros(1, 12, 32)), "position embeddings have shape .1, 12, 32."),
    (lambda s: dict(s, **{"blocks.0.ls1.gamma": torch.zeros(3)}), "ls1.gamma has shape .3,. but"),
    (lambda s: dict(s, **{"patch_embed.proj.weight": torch.zeros(32, 1, 7, 7)}), "asks? for .32, 3, 7, 7."),
    (lambda s: dict(s, cls_token=torch.zeros(())), "cls_token"),
]


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(("change", "message"), FOREIGN)
def test_weights_that_are_not_a_plain_vit_are_refused(tmp_path, change, message):
    save_file(change(timm_state()), str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path / "w.safetensors"))


def test_a_missing_query_key_or_value_is_refused():
    theirs = from_ours(state_of(TINY), NAMINGS["huggingface"], num_heads=2)
    del theirs["vit.encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(CheckpointError, match="query, key and value of blocks.1.attn.qkv.weight have shapes .*missing"):
        to_ours(theirs, NAMINGS["huggingface"], "x")


def test_a_tensor_in_two_spellings_is_refused():
    theirs = from_ours(state_of(TINY), NAMINGS["torchvision"], num_heads=2)
    theirs["encoder.layers.encoder_layer_0.mlp.linear_1.bias"] = torch.zeros(128)
    with pytest.raises(CheckpointError, match="mlp.linear_1.bias occurs twice"):
        to_ours(theirs, NAMINGS["torchvision"], "x")


def test_a_flax_kernel_of_another_rank_is_refused():
    theirs = from_ours(state_of(TINY), NAMINGS["google"], num_heads=2)
    theirs["embedding/kernel"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match="embedding/kernel has shape .3, 3. where 4 dimensions"):
        to_ours(theirs, NAMINGS["google"], "x")
    theirs["Transformer/encoderblock/LayerNorm_0/scale"] = torch.tensor(1.0)
    for shape in ((), (0, 3), (1001, 3)):
        theirs["Transformer/encoderblock/LayerNorm_0/scale"] = torch.ones(shape)
        with pytest.raises(CheckpointError, match="which is not one tensor for each block"):
            to_ours(theirs, NAMINGS["google"], "x")


TARGETS = [
    ("out", "tim", "--to tim: unknown; did you mean 'timm'"),
    ("there", "native", "there is already there: give another name"),
    ("out.txt", "torchvision", "--to torchvision writes a file: give a name that ends in .pth or .pt or .safetensors"),
    ("out", "google", "--to google writes a file: give a name that ends in .npz"),
    ("out.pth", "huggingface", "huggingface is written as a folder, without a suffix"),
    ("out.npz", "timm", "timm is written as a folder or as a file that ends in .safetensors or"),
]


@pytest.mark.parametrize(("target", "to", "message"), TARGETS)
def test_wrong_targets_are_refused_and_nothing_is_written(tmp_path, target, to, message):
    (tmp_path / "there").mkdir()
    save_file(timm_state(), str(tmp_path / "w.safetensors"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        convert(str(tmp_path / "w.safetensors"), tmp_path / target, to, num_heads=2, notify=quiet)
    assert sorted(tmp_path.iterdir()) == before


def test_an_unknown_number_of_heads_must_be_given(tmp_path):
    save_file(timm_state(), str(tmp_path / "w.safetensors"))
    weights = read_weights(str(tmp_path / "w.safetensors"))
    message = "heads is not known for width 32, depth 4, MLP width 128 and patch size 7, .*: state it with --num-heads$"
    with pytest.raises(CheckpointError, match=message):
        model_config(weights)
    with pytest.raises(CheckpointError, match="width 32 is not a multiple of num_heads 3"):
        model_config(weights, num_heads=3)
    assert model_config(weights, num_heads=2) == TINY.model_copy(update={"variant": None})


def test_weights_without_a_head_cannot_become_a_native_model(tmp_path):
    state = {key: tensor for key, tensor in timm_state().items() if not key.startswith("head.")}
    save_file(state, str(tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match="no classification head: fine-tune it first"):
        convert(str(tmp_path / "w.safetensors"), tmp_path / "x", "native", num_heads=2, notify=quiet)


HUGGINGFACE_CONFIGS = [
    ({"model_type": "deit"}, "its model_type is deit, not vit"),
    ({"model_type": "vit", "hidden_act": "relu"}, "its hidden_act relu is not one of gelu"),
    ({"model_type": "vit", "num_attention_heads": "many"}, "config.json: damaged"),
    ([1], "it is not a JSON object"),
]


@pytest.mark.parametrize(("config", "message"), HUGGINGFACE_CONFIGS)
def test_a_wrong_config_beside_the_weights_is_refused(tmp_path, config, message):
    save_file(from_ours(state_of(TINY), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read .*config.json"):
        read_weights(str(tmp_path))

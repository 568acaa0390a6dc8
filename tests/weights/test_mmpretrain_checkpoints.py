"""Checkpoints of mmclassification or mmpretrain with their config: its settings are read, and kept by `convert`."""

from __future__ import annotations

import pytest
import torch
from foreign import mmpretrain_state
from mmpretrain_texts import ARCH, DEEP, NEW, REFERENCE, RESIZED, USUAL, old
from tiny_weights import quiet

from vit_ipu.config import ModelConfig
from vit_ipu.model import ViT
from vit_ipu.weights.describe import assumptions, describe
from vit_ipu.weights.export import convert
from vit_ipu.weights.native import PIXEL_SETTINGS
from vit_ipu.weights.read import read_weights


def checkpoint(folder, version, **meta):
    """Writes a checkpoint of a ViT of one block for 224 px with a config; returns the file."""
    torch.manual_seed(0)
    shape = {"width": 64, "depth": 1, "num_heads": 4, "patch_size": 16, "image_size": 224, "mlp_ratio": 1.0}
    content = mmpretrain_state(ViT(ModelConfig(num_classes=5, **shape)).state_dict(), version, list("abcde"))
    content["meta"].update(meta)
    torch.save(content, str(folder / "w.pth"), _use_new_zipfile_serialization=version == "1.x")
    return folder / "w.pth"


def metadata_of(file):
    return read_weights(str(file), trust_pickle=True).metadata


def pixels_of(metadata):
    return {name: getattr(metadata, name) for name in PIXEL_SETTINGS}


@pytest.mark.parametrize(("version", "meta"), [("0.23", {"config": old()}), ("1.x", {"cfg": NEW})])
def test_a_checkpoint_states_what_its_config_states(tmp_path, version, meta):
    file = checkpoint(tmp_path, version, **meta)
    metadata = metadata_of(file)
    assert pixels_of(metadata) == (REFERENCE if version == "0.23" else USUAL)
    assert metadata.assumed == ("num_heads", "gelu", "layer_norm_eps", "pooling")
    assert metadata.classes == tuple("abcde")
    weights = read_weights(str(file), trust_pickle=True)
    (note,) = assumptions(weights, describe(weights, num_heads=4))
    assert "as mmpretrain has them by default: erf GELU, layer norm epsilon 1e-06, a head on the class token" in note
    assert "pixel" not in note


@pytest.mark.parametrize("text", [None, "x = " + "[" * DEEP, "import os", "x" * 5_000_000])
def test_a_checkpoint_with_a_hostile_config_has_the_defaults_of_the_library(tmp_path, text):
    metadata = metadata_of(checkpoint(tmp_path, "1.x", cfg=text))
    assert pixels_of(metadata) == USUAL
    assert set(PIXEL_SETTINGS) <= set(metadata.assumed)


def test_settings_of_the_config_are_stated_singly(tmp_path):
    file = checkpoint(tmp_path, "1.x", config=old(**{"crop_size=224": "crop_size=256", "arch='b'": ARCH}))
    metadata = metadata_of(file)
    assert pixels_of(metadata) == dict(REFERENCE, eval_resize=256)
    assert metadata.num_heads == 4
    assert metadata.assumed == ("gelu", "layer_norm_eps", "pooling", *RESIZED)


@pytest.mark.parametrize(
    ("to", "name"), [("native", "n"), ("timm", "t.safetensors"), ("mmpretrain", "m.pth"), ("huggingface", "h")]
)
def test_a_converted_file_keeps_what_the_config_states(tmp_path, to, name):
    file, target = checkpoint(tmp_path, "0.23", config=old()), tmp_path / "out" / name
    convert(str(file), target, to, trust_pickle=True, num_heads=4, notify=quiet)
    metadata = metadata_of(target)
    found = pixels_of(metadata)
    assert dict(found, eval_resize=found["eval_resize"] or 224) == dict(REFERENCE, eval_resize=224)
    assert not set(PIXEL_SETTINGS) & set(metadata.assumed)


def test_a_file_of_this_program_is_believed_before_a_config(tmp_path):
    """Adds another config to a file that `convert` wrote."""
    convert(
        str(checkpoint(tmp_path, "0.23", config=old())),
        tmp_path / "m.pth",
        "mmpretrain",
        trust_pickle=True,
        num_heads=4,
        notify=quiet,
    )
    content = torch.load(str(tmp_path / "m.pth"))
    content["meta"]["cfg"] = NEW
    torch.save(content, str(tmp_path / "m.pth"))
    assert pixels_of(metadata_of(tmp_path / "m.pth")) == REFERENCE

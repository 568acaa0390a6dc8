"""Checkpoints that timm's training writes: the model and the pixels are those of its arguments."""

from __future__ import annotations

import argparse
import math
import pathlib

import numpy as np
import pytest
import timm
import torch
from foreign import assert_same_logits, native_model, randomise
from timm.data import resolve_data_config
from timm.utils import CheckpointSaver
from tiny_weights import optimizer_of

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.choose import weight_file
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.tensor_files import read_tensors
from vit_ipu.weights.timm_configs import read_training_arguments

pytestmark = pytest.mark.usefixtures("safe_torch")


def timm_checkpoint(folder, **arguments):
    """Writes model_best.pth.tar of a model of two blocks by timm's own CheckpointSaver; returns timm's model."""
    torch.manual_seed(0)
    model_kwargs = dict({"depth": 2, "img_size": 32}, **arguments.pop("model_kwargs", {}))
    arguments = dict({"model": "vit_tiny_patch16_224", "model_kwargs": model_kwargs}, **arguments)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=2)
    optimizer = optimizer_of(model)
    randomise(model)
    args = argparse.Namespace(**dict({"lr": 1e-3, "data_dir": pathlib.Path("/d"), "gp": None}, **arguments))
    saver = CheckpointSaver(model, optimizer, args=args, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(3, metric=np.float64(71.5))
    return model.eval()


def test_timms_best_model_is_read_as_timm_computes_it(tmp_path):
    model = timm_checkpoint(tmp_path, mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2], img_size=32, crop_pct=0.8)
    path = str(tmp_path / "model_best.pth.tar")
    assert_same_logits(model, native_model(path), 32)
    metadata = read_weights(path).metadata
    assert (metadata.mean, metadata.std, metadata.eval_resize) == ((0.4,) * 3, (0.2,) * 3, 40)
    assert (metadata.eval_crop, metadata.interpolation, metadata.assumed) == ("center", "bicubic", ())


def test_the_square_resize_of_timms_training_is_followed(tmp_path):
    timm_checkpoint(tmp_path, crop_mode="squash", interpolation="bicubic", crop_pct=1.0, img_size=32)
    metadata = read_weights(str(tmp_path / "model_best.pth.tar")).metadata
    assert (metadata.eval_crop, metadata.eval_resize, metadata.interpolation) == ("squash", 32, "bicubic")
    assert (metadata.mean, metadata.std, metadata.assumed) == ((0.5,) * 3, (0.5,) * 3, ())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"img_size": None},
        {"crop_pct": 0.8, "interpolation": "bilinear"},
        {"mean": [0.1]},  # --mean 0.1
        {"std": [0.1, 0.2, 0.3], "crop_mode": "squash"},
        {"img_size": None, "input_size": [3, 32, 32]},
    ],
)
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "vit_tiny_patch16_384"])
def test_pixels_that_arguments_leave_open_are_those_of_timms_model(tmp_path, name, arguments):
    """Compares with `resolve_data_config`, which timm's train.py and validate.py call."""
    arguments = {"img_size": 32, "mean": None, "std": None, "interpolation": "", "crop_pct": None, **arguments}
    model_kwargs = {} if arguments["img_size"] or "input_size" in arguments else {"img_size": None}
    timm_checkpoint(tmp_path, model=name, model_kwargs=model_kwargs, **arguments)
    theirs = resolve_data_config(arguments, model=timm.create_model(name, depth=1))
    path = tmp_path / "model_best.pth.tar"
    metadata = read_training_arguments(path, read_tensors(path).metadata)
    settings = {**metadata.implied, **metadata.stated}
    side, expected = theirs["input_size"][1], [theirs[key] for key in ("mean", "std", "interpolation", "crop_mode")]
    assert [settings[key] for key in ("mean", "std", "interpolation", "eval_crop")] == [
        *map(tuple, expected[:2]),
        *expected[2:],
    ]
    assert settings["eval_resize"] == math.floor(side / theirs["crop_pct"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit_tiny_patch16_224.x"])
def test_pixels_of_a_tag_are_assumed(tmp_path, name):
    timm_checkpoint(tmp_path, model=name, img_size=32)
    assumed = read_weights(str(tmp_path / "model_best.pth.tar")).metadata.assumed
    assert assumed == ("mean", "std", "eval_crop", "eval_resize", "interpolation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gp": "avg"}, "its global_pool is avg, not the class token"),
        ({"model_kwargs": {"global_pool": "avg"}}, "its global_pool is avg"),
        ({"model_kwargs": {"act_layer": "relu"}}, "its act_layer relu is not one of gelu"),
        ({"model_kwargs": {"norm_layer": "rmsnorm"}}, "its norm_layer rmsnorm is not known"),
        ({"model_kwargs": {"qk_norm": True}}, "its qk_norm True is not known: only plain ViTs are read"),
        ({"model_kwargs": {"depth": 3}}, "it describes a model of depth 3, but the tensors have 2"),
        ({"model": "hf-hub:timm/vit_tiny_patch16_rope_224.x"}, "its architecture vit_tiny_patch16_rope_224 is not one"),
        ({"interpolation": "random"}, "its interpolation random is not one of bilinear, bicubic"),
        ({"mean": [0.1, 0.2], "std": [0.1] * 3}, r"its mean is \[0.1, 0.2\]: expected three numbers, one for each"),
        ({"crop_mode": "border"}, "its crop_mode border is not known: only center is, .* and squash"),
    ],
)
def test_arguments_of_timms_training_that_change_the_model_are_followed(tmp_path, arguments, message):
    timm_checkpoint(tmp_path, **arguments)
    with pytest.raises(CheckpointError, match=f"model_best.pth.tar: {message}"):
        read_weights(str(tmp_path / "model_best.pth.tar"))


def test_heads_and_activation_are_those_of_timms_training(tmp_path):
    model, kwargs = "hf-hub:timm/vit_tiny_patch16_224.x", {"num_heads": 6, "act_layer": "gelu_tanh"}
    timm_checkpoint(tmp_path, model=model, model_kwargs=kwargs)
    metadata = read_weights(str(tmp_path / "model_best.pth.tar")).metadata
    assert (metadata.num_heads, metadata.gelu) == (6, "tanh")


def test_a_folder_of_timms_training_has_several_files(tmp_path):
    timm_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"several files of weights \(.*model_best.pth.tar.*\): name one of them"):
        weight_file(tmp_path)

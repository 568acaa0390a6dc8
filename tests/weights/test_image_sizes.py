"""Resize and crop of foreign models: pixels as transformers and torchvision make them, a note, or a refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import tiny_values
from huggingface_folders import huggingface_folder, picture, rewrite
from PIL import Image
from safetensors.torch import save_file
from tiny_weights import quiet, tiny_state

from vit_ipu.config_file import parse_config
from vit_ipu.data.images.decode import DecodedImage, EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.images.transforms import EvalTransform, normalize_on_host
from vit_ipu.errors import CheckpointError
from vit_ipu.evaluate import compare_with_training
from vit_ipu.predict import inference_config
from vit_ipu.weights.describe import describe
from vit_ipu.weights.export import convert
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours

PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 2}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 3}),
    ("ViTImageProcessor", {"size": 32}),
    ("DeiTImageProcessor", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}),
    ("DeiTImageProcessor", {"size": 41, "crop_size": 32, "resample": 2}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 38}, "crop_size": 32, "image_mean": [0.5] * 3}),
    ("CLIPImageProcessor", {"size": 32, "crop_size": 32}),
    ("BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 32}),
]


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (32, 32), (20, 33)])
@pytest.mark.parametrize(("name", "values"), PROCESSORS)
def test_pixels_are_those_of_transformers_processors(tmp_path, name, values, size):
    import transformers

    processor = getattr(transformers, name)(**values)
    folder, image = huggingface_folder(tmp_path), picture(tmp_path / "a.png", *size)
    stated = dict(values, image_processor_type=name)
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))  # as short as people write it
    theirs = processor(Image.open(str(image)), return_tensors="np")["pixel_values"][0]
    weights = read_weights(str(folder))
    config = inference_config(describe(weights), weights.path)
    ours = normalize_on_host(EvalTransform(config.data, 32)(open_picture(str(image))), config.data)
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs) * np.array(config.data.std).reshape(3, 1, 1) * 255
    assert difference.max() < 2.1  # levels of 255
    assert difference.mean() < 0.5


REFUSED_PROCESSORS = [
    (
        {"image_processor_type": "ConvNextImageProcessor"},
        "its image processor ConvNextImageProcessor is not one of ViT",
    ),
    ({"image_mean": 0.5}, r"its image_mean is 0.5: expected three numbers, one for each channel, as \[0.5, 0.5, 0.5\]"),
    ({"image_std": [0.5]}, r"its image_std is \[0.5\]: expected three numbers"),
    ({"image_std": ["a", 1, 1]}, r"its image_std is \['a', 1, 1\]: expected three numbers"),
    ({"image_mean": {"r": 0.5}}, "its image_mean is {'r': 0.5}: expected three numbers"),
    (
        {"auto_map": {"AutoImageProcessor": "mine.ViTImageProcessor"}},
        "its auto_map names code of its own, so its steps are not known: remove auto_map if they are those of ViTImage",
    ),
    ({"resample": 1}, r"its resample 1 is not 2 \(bilinear\) or 3 \(bicubic\)"),
    ({"size": {"height": 32, "width": 64}}, "its size 32 x 64 is not square"),
    ({"size": {"shortest_edge": 32}}, "its size is of the short side, and it does not crop"),
    ({"size": {"shortest_edge": 32, "longest_edge": 50}}, "its size has a longest_edge of 50"),
    ({"size": {"height": 64, "width": 64}}, "it makes images of 64 pixels, but the image_size of the model is 32"),
    ({"do_center_crop": True, "crop_size": 24}, "it makes images of 24 pixels"),
    (
        {"do_center_crop": True, "crop_size": 32, "do_resize": False},
        "its do_resize is false, but its do_center_crop is",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED_PROCESSORS)
def test_a_processor_that_cannot_be_followed_is_refused(tmp_path, values, message):
    folder = huggingface_folder(tmp_path)
    rewrite(folder / "preprocessor_config.json", **values)
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {message}"):
        read_weights(str(folder))


def test_a_square_resize_is_kept_by_the_formats_that_can_state_it(tmp_path):
    folder, notes = huggingface_folder(tmp_path), []
    convert(str(folder), tmp_path / "n", "native", notify=quiet)
    convert(str(tmp_path / "n"), tmp_path / "h", "huggingface", notify=quiet)
    convert(str(tmp_path / "n"), tmp_path / "t", "timm", notify=quiet)
    for source in ("n", "h", "t"):
        pixels = describe(read_weights(str(tmp_path / source))).preprocessing
        assert (pixels.eval_crop, pixels.eval_resize) == ("squash", 32)
    convert(str(tmp_path / "n"), tmp_path / "m.pth", "mmpretrain", notify=notes.append)
    assert notes[-1].startswith("note: mmpretrain does not state pixels: mmpretrain has ")
    assert " a squash into a square, a resize of both sides to 32, bilinear resizing" in notes[-1]
    convert(str(tmp_path / "n"), tmp_path / "t.pth", "timm", notify=notes.append)
    assert notes[-1].startswith("note: timm does not state pixels: timm has ")
    rewrite(tmp_path / "n" / "config.json", config=old_config(tmp_path / "n" / "config.json"))
    assert describe(read_weights(str(tmp_path / "n"))).preprocessing.eval_crop == "center"  # written before the setting


def old_config(path):
    config = json.loads(path.read_text())["config"]
    del config["data"]["eval_crop"]
    return config


def test_an_evaluation_that_crops_otherwise_is_noted(tmp_path):
    weights = read_weights(str(huggingface_folder(tmp_path)))
    config = inference_config(describe(weights), weights.path)
    assert compare_with_training(weights, config, "abcde") == []
    data = config.data.model_copy(update={"eval_crop": "center", "eval_resize": 40})
    notes = compare_with_training(weights, config.model_copy(update={"data": data}), "abcde")
    assert notes == [
        "data.eval_resize is 40, but the weights were evaluated with 32",
        "data.eval_crop is center, but the weights were evaluated with squash",
    ]
    data = config.data.model_copy(update={"interpolation": "bicubic", "eval_resize": None})
    notes = compare_with_training(weights, config.model_copy(update={"data": data}), "abcde")
    assert notes == ["data.interpolation is bicubic, but the weights were evaluated with bilinear"]
    convert(weights.source, tmp_path / "n", "native", notify=quiet)
    changed = config.model_copy(update={"data": config.data.model_copy(update={"eval_crop": "center"})})
    notes = compare_with_training(read_weights(str(tmp_path / "n")), changed, "abcde")
    assert notes == ["data.eval_crop is center, but the checkpoint was trained with squash"]


def test_an_evaluation_that_squashes_what_was_cropped_is_noted(tmp_path):
    folder = huggingface_folder(tmp_path)
    values = {"do_center_crop": True, "crop_size": 32, "size": {"shortest_edge": 36}}
    rewrite(folder / "preprocessor_config.json", **values)
    weights = read_weights(str(folder))
    config = inference_config(describe(weights), weights.path)
    assert compare_with_training(weights, config, "abcde") == []
    data = config.data.model_copy(update={"eval_crop": "squash", "eval_resize": None})
    notes = compare_with_training(weights, config.model_copy(update={"data": data}), "abcde")
    assert notes == [
        "data.eval_resize is 32, but the weights were evaluated with 36",
        "data.eval_crop is squash, but the weights were evaluated with center",
    ]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("resize", [None, 28, 32])
@pytest.mark.parametrize("size", [(61, 300), (300, 61), (28, 28)])
def test_squashed_pixels_are_those_of_torchvision(tmp_path, suffix, resize, size):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    path = picture(tmp_path / ("a" + suffix), *size)
    config = parse_config(tiny_values(data={"eval_crop": "squash", "eval_resize": resize})).data
    image = Image.open(str(path))
    side = resize or 28
    theirs = np.array(CenterCrop(28)(Resize((side, side), InterpolationMode.BILINEAR)(image))).transpose(2, 0, 1)
    for ours in (DecodedImage(image), EncodedImage(path.read_bytes(), "a")):
        difference = np.abs(EvalTransform(config, 28)(ours).astype(int) - theirs)
        assert difference.mean() < (1 if suffix == ".png" else 3)


def test_a_model_without_a_processor_beside_it_gets_the_default_of_transformers(tmp_path):
    save_file(from_ours(tiny_state(), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2}))
    metadata = read_weights(str(tmp_path)).metadata
    assert (metadata.eval_crop, metadata.eval_resize, metadata.interpolation) == ("squash", None, "bilinear")

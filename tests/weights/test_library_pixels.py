"""What is assumed of a file that does not state its pixels: what the library that wrote it does by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign import google_arrays, mmpretrain_state
from helpers import vit_ipu
from huggingface_folders import picture
from PIL import Image
from safetensors.torch import save_file
from tiny_weights import quiet
from torchvision.models import vision_transformer

from vit_ipu.config import ModelConfig
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.images.transforms import EvalTransform, normalize_on_host
from vit_ipu.evaluate import compare_with_training
from vit_ipu.model import ViT
from vit_ipu.predict import inference_config
from vit_ipu.weights.describe import assumptions, describe
from vit_ipu.weights.export import convert, unsupported_description
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def bare_file(folder, naming, side, width=64, patch_size=16, num_heads=2):
    """Writes the weights of a ViT of one block under a library's names, without metadata; returns the file."""
    shape = {"width": width, "depth": 1, "num_heads": num_heads, "patch_size": patch_size, "image_size": side}
    torch.manual_seed(0)
    state = ViT(ModelConfig(num_classes=5, mlp_ratio=1.0, **shape)).state_dict()
    if naming == "google":
        np.savez(folder / "w.npz", **google_arrays(state, num_heads=num_heads))
        return folder / "w.npz"
    if naming == "mmpretrain":
        torch.save(mmpretrain_state(state, "1.x", list("abcde")), str(folder / "w.pth"))
        return folder / "w.pth"
    save_file(from_ours(state, NAMINGS[naming], num_heads=num_heads), str(folder / "w.safetensors"))
    return folder / "w.safetensors"


def pixels_of(file):
    metadata = read_weights(str(file), trust_pickle=True).metadata
    resize = (metadata.eval_crop, metadata.eval_resize)
    return (metadata.mean, metadata.std), metadata.interpolation, resize


CASES = [
    ("huggingface", 224, HALF, "bilinear", ("squash", None)),
    ("huggingface", 384, HALF, "bilinear", ("squash", None)),
    ("torchvision", 224, IMAGENET, "bilinear", ("center", 256)),
    ("torchvision", 384, IMAGENET, "bicubic", ("center", None)),
    ("torchvision", 512, IMAGENET, "bicubic", ("center", None)),
    ("torchvision", 32, IMAGENET, "bilinear", ("center", 36)),
    ("mmpretrain", 224, IMAGENET, "bicubic", ("center", 256)),
    ("mmpretrain", 384, HALF, "bilinear", ("center", None)),
    ("google", 224, HALF, "bilinear", ("squash", None)),
    ("google", 384, HALF, "bilinear", ("squash", None)),
    ("graphcore", 224, HALF, "bilinear", ("center", 256)),
]


@pytest.mark.parametrize(("naming", "side", "normalisation", "interpolation", "resize"), CASES)
def test_the_pixels_of_a_bare_file_are_the_defaults_of_its_library(
    tmp_path, naming, side, normalisation, interpolation, resize
):
    """Compares with the values of library_pixels' sources; timm's are compared in test_assumptions.py."""
    assert pixels_of(bare_file(tmp_path, naming, side)) == (normalisation, interpolation, resize)


# ------------------------------------------------------------------- compared with the installed libraries


def our_pixels(file, image):
    weights = read_weights(str(file))
    config = inference_config(describe(weights, num_heads=2), weights.path)
    return normalize_on_host(EvalTransform(config.data, config.model.image_size)(open_picture(str(image))), config.data)


def assert_equal_pixels(ours, theirs, std):
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs) * np.array(std).reshape(3, 1, 1) * 255
    assert difference.max() < 2.1  # levels of 255
    assert difference.mean() < 0.5


@pytest.mark.parametrize("side", [32, 224])
def test_a_bare_file_of_transformers_gets_the_pixels_of_its_image_processor(tmp_path, side):
    from transformers import ViTImageProcessor

    processor, image = ViTImageProcessor(), picture(tmp_path / "a.png")
    theirs = processor(Image.open(str(image)), size={"height": side, "width": side}, return_tensors="np")
    ours = our_pixels(bare_file(tmp_path, "huggingface", side), image)
    assert_equal_pixels(ours, theirs["pixel_values"][0], processor.image_std)


WIDTHS = {"B": 768, "L": 1024, "H": 1280}
SAME_SHAPE = ("ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1", "ViT_L_16_Weights.IMAGENET1K_SWAG_LINEAR_V1")
"""torchvision's weights whose tensors have the shapes of the default weights, but whose presets differ."""


def presets():
    names = [f"ViT_{name}_Weights" for name in ("B_16", "B_32", "L_16", "L_32", "H_14")]
    found = [weights for name in names for weights in getattr(vision_transformer, name)]
    return {str(weights): weights for weights in found if str(weights) not in SAME_SHAPE}


@pytest.mark.parametrize("name", presets())
def test_a_bare_file_of_torchvision_gets_the_pixels_of_its_preset(tmp_path, name):
    weights, image = presets()[name], picture(tmp_path / "a.png")
    size, patch_size = name.split("_")[1:3]
    side = weights.meta["min_size"][0]
    file = bare_file(tmp_path, "torchvision", side, width=WIDTHS[size], patch_size=int(patch_size))
    preset = weights.transforms()
    theirs = preset(Image.open(str(image))).numpy()
    assert_equal_pixels(our_pixels(file, image), theirs, preset.std)
    assert pixels_of(file)[:2] == ((tuple(preset.mean), tuple(preset.std)), preset.interpolation.value)


# ------------------------------------------------------------------------------------------- what is said

LIBRARIES = {
    "timm": "timm",
    "huggingface": "transformers",
    "torchvision": "torchvision",
    "mmpretrain": "mmpretrain",
    "google": "vit_jax",
    "graphcore": "graphcore/examples",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_notes_and_model_cards_say_by_whose_defaults(tmp_path, naming):
    file, library = bare_file(tmp_path, naming, 32), LIBRARIES[naming]
    weights, notes = read_weights(str(file), trust_pickle=True), []
    (note,) = assumptions(weights, describe(weights, num_heads=2))
    assert note.startswith(f"assumed for {file}, as {library} has them by default: ")
    convert(str(file), tmp_path / "folder", "huggingface", trust_pickle=True, num_heads=2, notify=notes.append)
    assert notes[0].startswith(f"note: assumed for {file}, as {library} has them by default: ")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert f"assumed in the conversion, as {library} has it by default: " in card


@pytest.mark.parametrize(
    ("to", "name"), [("native", "n"), ("timm", "t"), ("timm", "t.safetensors"), ("mmpretrain", "m.pth")]
)
def test_marks_in_files_of_this_program_are_not_ascribed_to_the_library_of_the_new_naming(tmp_path, to, name):
    source, target = bare_file(tmp_path, "huggingface", 32), tmp_path / "out" / name
    convert(str(source), target, to, num_heads=2, notify=quiet)
    weights = read_weights(str(target), trust_pickle=True)
    assert (weights.metadata.eval_crop, weights.metadata.interpolation) == ("squash", "bilinear")
    (note,) = assumptions(weights, describe(weights))
    assert note.startswith(f"assumed for {target}: erf GELU, layer norm epsilon 1e-12, pixel mean 0.5 0.5 0.5, ")
    assert "a squash into a square, a resize of both sides to 32, bilinear resizing" in note


def test_init_writes_the_squash_that_it_assumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bare_file(tmp_path, "huggingface", 32)
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(6):
            picture(tmp_path / "pictures" / label / f"{number}.png", 40, 32)
    command = ["init", "pictures", "--model", "w.safetensors", "--num-heads", "2", "--output", "a.yaml"]
    code, out, err = vit_ipu(monkeypatch, capsys, *command, "--device", "cpu")
    assert code == 0, err
    assert "so they are assumed, as transformers has them by default: erf GELU" in out
    assert "  eval_crop: squash  # assumed: the weights do not state it\n" in (tmp_path / "a.yaml").read_text()


def test_an_evaluation_that_differs_from_the_librarys_defaults_is_noted(tmp_path):
    weights = read_weights(str(bare_file(tmp_path, "google", 32)))
    config = inference_config(describe(weights), weights.path)
    assert [note for note in compare_with_training(weights, config, "abcde") if "usually" in note] == []
    data = config.data.model_copy(update={"eval_crop": "center", "eval_resize": 36, "interpolation": "bicubic"})
    notes = compare_with_training(weights, config.model_copy(update={"data": data}), "abcde")
    assert [note for note in notes if "usually" in note] == [
        "data.eval_resize is 36, but weights of their naming usually have 32",
        "data.interpolation is bicubic, but weights of their naming usually have bilinear",
        "data.eval_crop is center, but weights of their naming usually have squash",
    ]


# ------------------------------------------------------------------------------------------------ exports

UNSTATED = {
    "torchvision": "torchvision has pixel mean 0.485 0.456 0.406, pixel deviation 0.229 0.224 0.225, a centre crop, a "
    "resize of the short side to 36 by default, but the model expects pixel mean 0.5 0.5 0.5, pixel deviation 0.5 0.5 "
    "0.5, a squash into a square, a resize of both sides to 32",
    "graphcore": "graphcore/examples has a centre crop, a resize of the short side to 36 by default, but the model "
    "expects a squash into a square, a resize of both sides to 32",
    "timm": "timm has a centre crop, a resize of the short side to 35, bicubic resizing by default, but the model "
    "expects a squash into a square, a resize of both sides to 32, bilinear resizing",
}


@pytest.mark.parametrize("to", UNSTATED)
def test_a_format_that_does_not_state_pixels_is_noted_with_what_its_library_does(tmp_path, to):
    description = describe(read_weights(str(bare_file(tmp_path, "huggingface", 32))), num_heads=2)
    assert unsupported_description(description, to, as_file=True) == [f"{to} does not state pixels: {UNSTATED[to]}"]


@pytest.mark.parametrize(("naming", "to"), [("huggingface", "google"), ("google", "google"), ("timm", "timm")])
def test_pixels_that_the_library_of_the_format_has_too_are_not_noted(tmp_path, naming, to):
    file = bare_file(tmp_path, naming, 32)
    description = describe(read_weights(str(file)), num_heads=2)
    assert unsupported_description(description, to, as_file=True) == []


@pytest.mark.parametrize("to", ["huggingface", "timm"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_assumed_pixels_survive_a_folder_of_another_library(tmp_path, naming, to):
    file = bare_file(tmp_path, naming, 224)
    convert(str(file), tmp_path / "out", to, trust_pickle=True, num_heads=2, notify=quiet)
    normalisation, interpolation, (crop, resize) = pixels_of(file)
    assert pixels_of(tmp_path / "out") == (normalisation, interpolation, (crop, resize or 224))

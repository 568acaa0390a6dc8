"""Settings that neither tensors nor files tell: asked for, or said on every command and marked in what is written."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import timm
import torch
from foreign import google_arrays, huggingface_model, mmpretrain_state, randomise
from helpers import vit_ipu, write_config, write_image_folder
from PIL import Image
from safetensors.torch import save_file
from tiny_weights import quiet, tiny_state

from vit_ipu.config import ModelConfig
from vit_ipu.errors import CheckpointError
from vit_ipu.files import write_checksums
from vit_ipu.model import ViT
from vit_ipu.weights.describe import describe, model_config, published_heads
from vit_ipu.weights.export import convert
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.native import ASSUMABLE, load_description
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours

NOTE = (
    "note: assumed for w.safetensors, as timm has them by default: 3 attention heads, erf GELU, "
    "layer norm epsilon 1e-06, a head on the class token, pixel mean 0.5 0.5 0.5, pixel deviation 0.5 0.5 0.5, "
    "a centre crop, a resize of the short side to 35, bicubic resizing; --num-heads states the heads"
)
"""What is said about a bare file of a ViT-Ti/16."""
NATIVE_NOTE = NOTE.replace("w.safetensors, as timm has them by default", "native")
"""What is said about the same weights in a native folder, which does not state whose defaults were assumed."""


def unusual(width=192, depth=12, num_heads=6, num_classes=5, **arguments):
    """Returns timm's ViT-Ti/16 for 32 px with twice the usual attention heads, or with another shape."""
    torch.manual_seed(0)
    shape = {"embed_dim": width, "depth": depth, "num_heads": num_heads, "img_size": 32, "num_classes": num_classes}
    model = timm.create_model("vit_tiny_patch16_224", **shape, **arguments).eval()
    return randomise(model, std=0.1)  # far from uniform attention, so that the number of heads matters


@pytest.fixture
def bare(empty_folder):
    """Writes w.safetensors, a bare file of a model with 6 heads, and photo.png; returns the model's probabilities."""
    model = unusual()
    save_file(model.state_dict(), "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (35, 35, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    pixels = pixels[2:34, 2:34]  # timm resizes to 35 = floor(32 / 0.9), and crops the centre
    with torch.no_grad():
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        return model((images - 0.5) / 0.5).softmax(1)[0].tolist()


def probabilities(run, checkpoint, *options):
    rows = json.loads(run("predict", checkpoint, "photo.png", "--device", "cpu", "--json", *options))["predictions"]
    return [row["probability"] for row in sorted(rows[0]["classes"], key=lambda row: row["name"])]


# -------------------------------------------------------------------------------- on every command


def test_predict_says_what_it_assumed_and_the_user_can_state_the_heads(run, bare):
    out = run("predict", "w.safetensors", "photo.png", "--device", "cpu")
    assert out.splitlines()[0] == NOTE
    assert probabilities(run, "w.safetensors") != pytest.approx(bare, abs=1e-2)  # the note is about wrong figures
    assert probabilities(run, "w.safetensors", "--num-heads", "6") == pytest.approx(bare, abs=1e-5)
    out = run("predict", "w.safetensors", "photo.png", "--device", "cpu", "--num-heads", "6")
    assert out.startswith("note: assumed for w.safetensors, as timm has them by default: erf GELU, layer norm ")
    assert "heads" not in out


def test_convert_marks_what_it_assumed_and_the_note_comes_again(run, bare, empty_folder):
    assert NOTE in run("convert", "w.safetensors", "native", "--to", "native")
    assert json.loads((empty_folder / "native" / "config.json").read_text())["assumed"] == list(ASSUMABLE)
    assert run("predict", "native", "photo.png", "--device", "cpu").startswith(NATIVE_NOTE)
    assert NATIVE_NOTE in run("convert", "native", "again", "--to", "native")
    assert load_description(empty_folder / "again").assumed == ASSUMABLE
    found = json.loads(run("convert", "again", "stated", "--to", "native", "--num-heads", "6", "--json"))
    assert found["assumed"] == list(ASSUMABLE[1:])
    assert load_description(empty_folder / "stated").assumed == ASSUMABLE[1:]
    for checkpoint, options in (("stated", ()), ("native", ("--num-heads", "6"))):
        assert probabilities(run, checkpoint, *options) == pytest.approx(bare, abs=1e-5)


def test_evaluate_and_train_say_that_the_config_decides(run, bare, empty_folder, monkeypatch, capsys):
    model = unusual(num_classes=10)
    save_file(model.state_dict(), "w.safetensors")
    tiny = {"variant": "vit_tiny_patch16", "image_size": 32, "gelu": "tanh"}
    config = write_config(empty_folder, model=tiny, pipeline={"layers_per_ipu": None}, run={"updates": 1})
    note = "note: {} does not state these settings, so the config's are used: 3 attention heads, tanh GELU, layer norm "
    evaluate = ["evaluate", config, "--device", "cpu", "--checkpoint"]
    assert note.format("w.safetensors") in run(*evaluate, "w.safetensors")
    run("convert", "w.safetensors", "native", "--to", "native")
    assert note.format("native") in run(*evaluate, "native")
    for source in ("w.safetensors", "native"):
        init = ["--set", f"model.init={source}", "--output", f"run_{source}"]
        assert note.format(source) in run("train", config, "--device", "cpu", *init)
    six = note.replace("3 attention", "6 attention").format("native")
    assert six in run(*evaluate, "native", "--set", "model.num_heads=6")  # the mark is not a statement
    assert "does not state" not in run(*evaluate, "run_native")  # the run's config states everything
    out = run(*evaluate, "w.safetensors", "--num-heads", "6", "--set", "model.num_heads=6")
    assert "note: w.safetensors does not state these settings, so the config's are used: tanh GELU, " in out
    assert "; if one is wrong, set model.gelu, model.layer_norm_eps, data.mean, data.std, " in out
    assert "note: model.gelu is tanh, but weights of their naming usually have erf" in out
    out = run(*evaluate, "native")
    assert "note: model.gelu is tanh, but its conversion assumed erf" in out
    code, _, err = vit_ipu(monkeypatch, capsys, *evaluate, "w.safetensors", "--num-heads", "6")
    assert (code, "w.safetensors has 6 attention heads but model.num_heads is 3" in err) == (2, True)


def test_the_config_of_a_fine_tune_can_state_heads_that_no_published_model_has(run, empty_folder):
    save_file(unusual(depth=1, num_heads=2, num_classes=10).state_dict(), "w.safetensors")
    tiny = {"variant": "vit_tiny_patch16", "depth": 1, "num_heads": 2, "image_size": 32, "init": "w.safetensors"}
    config = write_config(empty_folder, model=tiny, pipeline={"layers_per_ipu": None}, run={"updates": 1})
    out = run("train", config, "--device", "cpu", "--output", "run")
    assert "note: w.safetensors does not state these settings, so the config's are used: 2 attention heads, " in out


def test_predict_says_what_an_ipu_computes_differently(run, empty_folder):
    config = write_config(empty_folder, model={"gelu": "erf", "layer_norm_eps": 1e-12}, run={"updates": 1})
    run("train", config, "--device", "cpu", "--output", "run")
    image = next((empty_folder / "run" / "examples").glob("*.png"))
    out = run("predict", "run", image, "--device", "ipu-sim")
    assert "note: gelu is tanh on ipu-sim, but the model was trained with erf" in out
    assert "note: layer_norm_eps is 1e-06 on ipu-sim, but the model was trained with 1e-12" in out
    assert "note" not in run("predict", "run", image, "--device", "cpu")


def test_init_says_nothing_about_weights_that_state_everything(run, empty_folder):
    _, folder = huggingface_model("tiny", 16, 32, empty_folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    write_image_folder(empty_folder, splits=["pictures"], count=10)
    assert "does not state" not in run("init", "pictures", "--model", folder, "--device", "cpu")


@pytest.mark.parametrize(("side", "resize"), [(32, 35), (224, 248), (240, 252), (256, 269), (384, 384), (518, 518)])
def test_the_pixels_of_a_bare_file_of_timms_are_timms_defaults(tmp_path, side, resize):
    """Compares with timm's `_cfg`, and for the sides of published models with these models' own `default_cfg`."""
    patch = 14 if side == 518 else 16
    shape = {"patch_size": patch, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 5}
    save_file(timm.models.VisionTransformer(img_size=side, **shape).state_dict(), str(tmp_path / "w.safetensors"))
    metadata = read_weights(str(tmp_path / "w.safetensors")).metadata
    names = {
        240: "vit_base_patch16_plus_240",
        256: "vit_base_patch32_plus_256",
        384: "vit_base_patch16_384",
        518: "vit_base_patch14_dinov2",
    }
    theirs = timm.models.vision_transformer._cfg()
    if side in names:
        theirs = timm.get_pretrained_cfg(names[side]).to_dict()
    assert (metadata.interpolation, metadata.eval_crop) == (theirs["interpolation"], "center")
    assert (metadata.eval_resize or side) == math.floor(side / theirs["crop_pct"]) == resize
    if side != 518:  # DINOv2 has ImageNet's mean, and its tensors look like timm's others
        assert (metadata.mean, metadata.std) == (theirs["mean"], theirs["std"])


# --------------------------------------------------------------------------- heads that must be given

SHAPES = [
    ((192, 12, 768, 16), (3,)),
    ((384, 12, 1536, 8), (6,)),
    ((384, 12, 1536, 16), (6, 12)),  # DeiT's and timm's, and MoCo v3's
    ((768, 12, 3072, 14), (12,)),
    ((1408, 40, 6144, 14), (16,)),
    ((1664, 48, 8192, 14), (16,)),
    ((768, 8, 2304, 16), ()),  # timm's first vit_small_patch16_224, which has 8 heads
    ((768, 12, 2304, 16), ()),
    ((768, 12, 3072, 4), ()),
    ((1152, 27, 4304, 14), ()),
    ((32, 4, 128, 7), ()),  # the variant for tests is not published
]


@pytest.mark.parametrize(("shape", "heads"), SHAPES)
def test_heads_are_assumed_for_published_shapes_only(shape, heads):
    assert published_heads(dict(zip(("width", "depth", "mlp_width", "patch_size"), shape))) == heads


def test_a_shape_with_several_published_numbers_of_heads_is_refused(tmp_path):
    save_file(unusual(width=384, num_heads=12).state_dict(), str(tmp_path / "w.safetensors"))
    message = "MLP width 1536 and patch size 16, of which published ViTs have 6 or 12: state it with --num-heads$"
    with pytest.raises(CheckpointError, match=message):
        convert(str(tmp_path / "w.safetensors"), tmp_path / "native", "native", notify=quiet)
    convert(str(tmp_path / "w.safetensors"), tmp_path / "native", "native", num_heads=12, notify=quiet)
    assert load_description(tmp_path / "native").model.num_heads == 12


def test_the_heads_of_an_unpublished_shape_must_be_given_to_predict_and_convert(
    run, bare, empty_folder, monkeypatch, capsys
):
    model = unusual(width=64, depth=2, num_heads=4, mlp_ratio=3.0)
    save_file(model.state_dict(), "w.safetensors")
    for command in (["predict", "w.safetensors", "photo.png"], ["convert", "w.safetensors", "x", "--to", "native"]):
        code, _, err = vit_ipu(monkeypatch, capsys, *command)
        assert code == 2
        assert "is not known for width 64, depth 2, MLP width 192 and patch size 16" in err
        assert "state it with --num-heads" in err
    run("convert", "w.safetensors", "x", "--to", "native", "--num-heads", "4")
    assert load_description(empty_folder / "x").model.num_heads == 4


def test_a_stated_number_of_heads_is_not_overruled(tmp_path):
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"))
    convert(str(tmp_path / "w.safetensors"), tmp_path / "native", "native", num_heads=6, notify=quiet)
    with pytest.raises(CheckpointError, match="native has 6 attention heads, not 3"):
        describe(read_weights(str(tmp_path / "native")), num_heads=3)
    convert(str(tmp_path / "w.safetensors"), tmp_path / "assumed", "native", notify=quiet)
    with pytest.raises(CheckpointError, match="assumed: width 192 is not a multiple of num_heads 5"):
        describe(read_weights(str(tmp_path / "assumed")), num_heads=5)


# ------------------------------------------------------------------------------ marks in what is written


@pytest.mark.parametrize(
    ("to", "name"),
    [("native", "out"), ("timm", "out"), ("timm", "o.safetensors"), ("huggingface", "out"), ("mmpretrain", "out.pth")],
)
def test_every_format_that_can_marks_what_was_assumed(tmp_path, to, name):
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"))
    convert(str(tmp_path / "w.safetensors"), tmp_path / name, to, notify=quiet)
    assert read_weights(str(tmp_path / name), trust_pickle=True).metadata.assumed == ASSUMABLE
    (tmp_path / "stated").mkdir()
    target = tmp_path / "stated" / name
    _, source = huggingface_model("tiny", 16, 32, tmp_path)
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "do_center_crop": True}
    pixels.update(image_processor_type="CLIPImageProcessor", crop_size=32)
    (source / "preprocessor_config.json").write_text(json.dumps(dict(pixels, size={"shortest_edge": 36})))
    convert(str(source), target, to, notify=quiet)
    metadata = read_weights(str(target), trust_pickle=True).metadata
    assert (metadata.assumed, metadata.num_heads, metadata.layer_norm_eps) == ((), 3, 1e-12)
    assert (metadata.mean, metadata.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (metadata.eval_resize, metadata.interpolation) == (36, "bicubic")


def test_an_onnx_file_is_marked_and_a_google_file_is_refused(tmp_path):
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"))
    source = str(tmp_path / "w.safetensors")
    convert(source, tmp_path / "w.onnx", "onnx", notify=quiet)
    properties = {p.key: p.value for p in onnx.load(str(tmp_path / "w.onnx")).metadata_props}
    assert json.loads(properties["assumed"]) == list(ASSUMABLE)
    with pytest.raises(CheckpointError, match="google file would state the usual number, 3, as a fact: give --num-he"):
        convert(source, tmp_path / "w.npz", "google", notify=quiet)
    convert(source, tmp_path / "w.npz", "google", num_heads=6, notify=quiet)
    assert read_weights(str(tmp_path / "w.npz")).metadata.assumed == ASSUMABLE[4:]  # pixels


@pytest.mark.parametrize(("to", "name"), [("timm", "w.pth"), ("torchvision", "w.pt"), ("graphcore", "w.bin")])
def test_files_that_cannot_state_unusual_heads_say_so(tmp_path, to, name):
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"))
    source, notes = str(tmp_path / "w.safetensors"), []
    convert(source, tmp_path / name, to, num_heads=6, notify=notes.append)
    expected = f"note: {name} cannot state the number of attention heads, 6: read it with --num-heads 6"
    assert expected in notes
    convert(source, tmp_path / ("usual_" + name), to, num_heads=3, notify=notes.append)
    assert notes.count(expected) == 1


def test_unknown_marks_are_damage(tmp_path):
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"))
    convert(str(tmp_path / "w.safetensors"), tmp_path / "native", "native", notify=quiet)
    config = tmp_path / "native" / "config.json"
    config.write_text(json.dumps(dict(json.loads(config.read_text()), assumed=["colour"])))
    with pytest.raises(CheckpointError, match="config.json is damaged: it has "):
        read_weights(str(tmp_path / "native"))
    write_checksums(tmp_path / "native")
    with pytest.raises(CheckpointError, match="config.json is damaged: 'colour' is marked as assumed, but is not one"):
        read_weights(str(tmp_path / "native"))
    stated = {"num_heads": 3, "layer_norm_eps": 1e-6, "gelu": "erf", "assumed": ["colour"]}
    save_file(unusual().state_dict(), str(tmp_path / "m.safetensors"), {"vit_ipu": json.dumps(stated)})
    with pytest.raises(CheckpointError, match="m.safetensors: damaged: 'colour' is marked as assumed"):
        read_weights(str(tmp_path / "m.safetensors"))


def test_files_of_older_versions_do_not_state_pixels(tmp_path):
    stated = json.dumps({"num_heads": 3, "layer_norm_eps": 1e-6, "gelu": "tanh"})
    save_file(unusual().state_dict(), str(tmp_path / "w.safetensors"), {"vit_ipu": stated})
    assert read_weights(str(tmp_path / "w.safetensors")).metadata.assumed == ASSUMABLE[3:]


# ------------------------------------------------------------------------------- what a naming states


def tiny_file(folder, name):
    state = tiny_state()
    if name == "google":
        np.savez(folder / "w.npz", **google_arrays(state, num_heads=2))
        return folder / "w.npz"
    if name == "mmpretrain":
        torch.save(mmpretrain_state(state, "1.x", list("abcde")), str(folder / "w.pth"))
        return folder / "w.pth"
    save_file(from_ours(state, NAMINGS[name], num_heads=2), str(folder / "w.safetensors"))
    return folder / "w.safetensors"


PIXELS = ("mean", "std", "eval_crop", "eval_resize", "interpolation")
ASSUMED = {
    "timm": ("num_heads", "gelu", "layer_norm_eps", "pooling", *PIXELS),
    "mmpretrain": ("num_heads", "gelu", "layer_norm_eps", "pooling", *PIXELS),
    "huggingface": ("num_heads", "gelu", "layer_norm_eps", *PIXELS),
    "torchvision": ("num_heads", "layer_norm_eps", *PIXELS),
    "graphcore": ("num_heads", *PIXELS),
    "google": PIXELS,
}


@pytest.mark.parametrize("name", NAMINGS)
def test_what_a_library_leaves_open_is_assumed(tmp_path, name):
    """Takes as stated what the library's code fixes, and the heads of google's kernels."""
    assert read_weights(str(tiny_file(tmp_path, name)), trust_pickle=True).metadata.assumed == ASSUMED[name]


# -------------------------------------------------------------------------------------- transformers


def huggingface_folder(tmp_path, config=None, pixels=None):
    _, folder = huggingface_model("tiny", 16, 32, tmp_path)
    stated = dict(json.loads((folder / "config.json").read_text()), **(config or {}))
    (folder / "config.json").write_text(json.dumps(stated))
    if pixels is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


REFUSED = [
    ({"auto_map": {"AutoModel": "mine.Model"}}, None, "config.json: its auto_map names code of its own"),
    ({"hidden_size": 384}, None, "config.json: it describes a model of width 384, but the tensors have 192"),
    ({"num_hidden_layers": 6}, None, "config.json: it describes a model of depth 6, but the tensors have 12"),
    ({"image_size": 224}, None, "config.json: it describes a model of image_size 224, but the tensors have 32"),
    ({"id2label": {"0": "a"}}, None, "config.json: it describes a model of num_classes 1, but the tensors have 5"),
    (
        None,
        {"resample": 1},
        r"preprocessor_config.json: its resample 1 is not 2 \(bilinear\) or 3 \(bicubic\)",
    ),
]


@pytest.mark.parametrize(("config", "pixels", "message"), REFUSED)
def test_what_transformers_would_compute_otherwise_is_refused(tmp_path, config, pixels, message):
    folder = huggingface_folder(tmp_path, config, pixels)
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(folder))


def test_what_transformers_leaves_out_of_a_config_is_its_default(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.manual_seed(0)
    shape = {"width": 48, "depth": 1, "num_heads": 12, "patch_size": 7, "image_size": 28, "num_classes": 5}
    state = ViT(ModelConfig(**shape)).state_dict()
    save_file(from_ours(state, NAMINGS["huggingface"], num_heads=12), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    weights = read_weights(str(folder))
    model = model_config(weights)
    assert (model.num_heads, model.gelu, model.layer_norm_eps, weights.metadata.assumed) == (12, "erf", 1e-12, PIXELS)


SQUARE = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "do_resize": True}


@pytest.mark.parametrize("size", [32, {"height": 32, "width": 32}])
def test_a_processor_that_squashes_images_is_followed_and_leaves_nothing_to_assume(tmp_path, size):
    """Covers ViTImageProcessor, which google's checkpoints on the Hub have."""
    folder, notes = huggingface_folder(tmp_path, pixels=dict(SQUARE, size=size)), []
    convert(str(folder), tmp_path / "native", "native", notify=notes.append)
    description = load_description(tmp_path / "native")
    assert (notes, description.assumed) == ([], ())
    assert (description.preprocessing.eval_crop, description.preprocessing.eval_resize) == ("squash", 32)


def test_a_processor_that_crops_the_centre_leaves_nothing_to_assume(tmp_path):
    pixels = dict(SQUARE, size={"shortest_edge": 36}, do_center_crop=True, crop_size={"height": 32, "width": 32})
    metadata = read_weights(str(huggingface_folder(tmp_path, pixels=pixels))).metadata
    assert (metadata.assumed, metadata.eval_resize) == ((), 36)

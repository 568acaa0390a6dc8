"""What goes into a foreign model and comes out of it: pixels and probabilities as in transformers, or a refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from foreign import google_arrays, huggingface_model
from helpers import tiny_values, vit_ipu
from PIL import Image
from safetensors.torch import save_file
from tiny_weights import quiet, tiny_state

from vit_ipu.backends.build import resolve_device
from vit_ipu.config_file import parse_config
from vit_ipu.data.images.decode import DecodedImage, EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.images.transforms import EvalTransform, normalize_on_host
from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.evaluate import compare_with_training
from vit_ipu.files import CHECKSUMS, write_checksums
from vit_ipu.predict import inference_config, predict
from vit_ipu.weights.describe import describe
from vit_ipu.weights.export import convert
from vit_ipu.weights.export_configs import huggingface_config
from vit_ipu.weights.fit import load_init
from vit_ipu.weights.namings import NAMINGS
from vit_ipu.weights.read import read_weights
from vit_ipu.weights.translate import from_ours

CPU = resolve_device("cpu")


def picture(path, width=90, height=40):
    """Writes an image with fine and coarse structure; a format without loss, so that all readers see equal pixels."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(columns / a + rows / b) * 100 + 128 for a, b in ((3, 7), (11, 5), (30, 17))]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(str(path))
    return path


def huggingface_folder(folder, problem_type=None, classes=("a", "b", "c", "d", "e"), **processor):
    """Writes a random transformers model of 32 pixels with its processor, ViTImageProcessor if none is given."""
    from transformers import ViTImageProcessor

    _, made = huggingface_model("tiny", 16, 32, folder, classes=classes)
    config = json.loads((made / "config.json").read_text())
    config["problem_type"] = problem_type
    (made / "config.json").write_text(json.dumps(config))
    ViTImageProcessor(size={"height": 32, "width": 32}, **processor).save_pretrained(str(made))
    return made


def rewrite(path, **values):
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({key: part for key, part in dict(stated, **values).items() if part != "removed"}))
    if (path.parent / CHECKSUMS).exists():
        write_checksums(path.parent)


def by_transformers(folder, image, function=None):
    """Returns the scores that transformers' own pipeline computes, by class.

    Until version 5 the pipeline confused the two kinds of classification, so `function` names the right function.
    """
    from transformers import pipeline

    pipe = pipeline("image-classification", model=str(folder), device="cpu")
    found = pipe(Image.open(str(image)), top_k=5, function_to_apply=function)
    return {row["label"]: row["score"] for row in found}


def by_us(source, image):
    return dict(predict(str(source), [str(image)], CPU, trust_pickle=True)[0].classes)


def assert_equal_scores(ours, theirs):
    assert set(ours) == set(theirs)
    assert max(abs(ours[name] - theirs[name]) for name in ours) < 1e-3, (ours, theirs)  # pixels differ by 1 of 255


# ------------------------------------------------------------------------------- meaning of the outputs


@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_probabilities_are_those_of_transformers(tmp_path, problem_type):
    folder, image = huggingface_folder(tmp_path, problem_type), picture(tmp_path / "a.png")
    function = "sigmoid" if problem_type == "multi_label_classification" else "softmax"  # as in its loss function
    theirs = by_transformers(folder, image, function)
    assert (abs(sum(theirs.values()) - 1) > 0.1) == (function == "sigmoid")
    assert_equal_scores(by_us(folder, image), theirs)
    convert(str(folder), tmp_path / "native", "native", notify=quiet)
    assert_equal_scores(by_us(tmp_path / "native", image), theirs)
    convert(str(tmp_path / "native"), tmp_path / "back", "huggingface", notify=quiet)
    assert_equal_scores(by_us(tmp_path / "back", image), theirs)
    assert_equal_scores(by_transformers(tmp_path / "back", image, function), theirs)


def test_a_single_output_is_a_probability_by_itself_as_in_transformers(tmp_path):
    folder, image = huggingface_folder(tmp_path, classes=("yes",)), picture(tmp_path / "a.png")
    theirs = by_transformers(folder, image)
    assert theirs["yes"] < 0.99
    assert_equal_scores(by_us(folder, image), theirs)


def test_a_single_output_of_unknown_meaning_is_refused(tmp_path):
    state = tiny_state()
    state["head.weight"], state["head.bias"] = state["head.weight"][:1], state["head.bias"][:1]
    save_file(state, str(tmp_path / "w.safetensors"))
    convert(str(tmp_path / "w.safetensors"), tmp_path / "n", "native", num_heads=2, notify=quiet)
    with pytest.raises(UserError, match="n: its head has one output, for which softmax is 1 whatever the image"):
        by_us(tmp_path / "n", picture(tmp_path / "a.png"))


def test_values_of_a_regression_are_not_shown_as_probabilities(tmp_path, monkeypatch, capsys):
    folder, image = huggingface_folder(tmp_path, "regression"), picture(tmp_path / "a.png")
    convert(str(folder), tmp_path / "native", "native", notify=quiet)
    for source in (folder, tmp_path / "native"):
        code, _, error = vit_ipu(monkeypatch, capsys, "predict", str(source), str(image), "--device", "cpu")
        assert code == 2
        assert "its outputs are values (problem_type regression), not probabilities of classes" in error
    convert(str(tmp_path / "native"), tmp_path / "back", "huggingface", notify=quiet)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["problem_type"] == "regression"


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_top1_of_several_classes_or_values_is_refused(tmp_path, problem_type):
    folder = huggingface_folder(tmp_path, problem_type)
    convert(str(folder), tmp_path / "native", "native", notify=quiet)
    for source in (folder, tmp_path / "native"):
        weights = read_weights(str(source))
        config = inference_config(describe(weights), weights.path)
        with pytest.raises(UserError, match=f"was trained for {problem_type}, for which top-1 and top-5 make no sense"):
            compare_with_training(weights, config, "abcde")


def test_sigmoids_may_be_evaluated_if_the_config_says_that_each_image_has_one_class(tmp_path):
    folder = huggingface_folder(tmp_path, "multi_label_classification")
    weights = read_weights(str(folder))
    config = inference_config(describe(weights), weights.path)
    with pytest.raises(UserError, match="program that trained it; if each image has one class, set optim.loss: bce$"):
        compare_with_training(weights, config, "abcde")
    bce = config.model_copy(update={"optim": config.optim.model_copy(update={"loss": "bce"})})
    assert not any("trained for" in note for note in compare_with_training(weights, bce, "abcde"))


def test_training_on_is_noted_to_be_of_one_class(tmp_path):
    folder = huggingface_folder(tmp_path, "multi_label_classification")
    weights = read_weights(str(folder))
    config = inference_config(describe(weights), weights.path)
    model = config.model.model_copy(update={"init": str(folder)})
    notes = []
    load_init(config.model_copy(update={"model": model}), weights.tensors, notify=notes.append)
    assert any("trained for multi_label_classification, but this program trains with softmax" in note for note in notes)


def test_a_problem_type_that_is_not_known_is_refused(tmp_path):
    folder = huggingface_folder(tmp_path, "ranking")
    with pytest.raises(CheckpointError, match="config.json: problem_type ranking is not one of single_label"):
        read_weights(str(folder))
    convert(str(huggingface_folder(tmp_path)), tmp_path / "native", "native", notify=quiet)
    rewrite(tmp_path / "native" / "config.json", problem_type="ranking")
    with pytest.raises(CheckpointError, match="config.json is damaged: problem_type ranking is not one of"):
        read_weights(str(tmp_path / "native"))
    rewrite(tmp_path / "native" / "config.json", problem_type="removed")  # as older versions wrote it
    assert read_weights(str(tmp_path / "native")).metadata.problem_type == "single_label_classification"


@pytest.mark.parametrize(("to", "name"), [("timm", "t.safetensors"), ("mmpretrain", "m.pth"), ("torchvision", "v.pth")])
def test_formats_without_a_problem_type_are_noted(tmp_path, to, name):
    folder, notes = huggingface_folder(tmp_path, "multi_label_classification"), []
    convert(str(folder), tmp_path / name, to, notify=notes.append)
    assert f"note: {to} does not state that the model was trained for multi_label_classification" in notes
    if to != "torchvision":  # our own metadata is in the file
        metadata = read_weights(str(tmp_path / name), trust_pickle=True).metadata
        assert metadata.problem_type == "multi_label_classification"


def test_a_model_of_one_class_states_no_problem_type(tmp_path):
    assert "problem_type" not in huggingface_config_of(huggingface_folder(tmp_path))


def huggingface_config_of(folder):
    weights = read_weights(str(folder))
    return huggingface_config(describe(weights))


# ------------------------------------------------------------------------------------ resize and crop


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


# ------------------------------------------------------------------------------------------------ LiT


@pytest.mark.parametrize("prefix", ["params/img/", "img/"])
def test_the_projection_of_a_model_of_images_and_text_is_not_a_classifier(tmp_path, prefix):
    state, image = tiny_state(), picture(tmp_path / "a.png")
    root = prefix.rpartition("img/")[0]
    arrays = {prefix + key: array for key, array in google_arrays(state, num_heads=2).items()}
    arrays.update({root + "t": np.zeros(1, "f4"), root + "txt/head/kernel": np.zeros((4, 5), "f4")})
    np.savez(tmp_path / "lit.npz", **arrays)
    source = str(tmp_path / "lit.npz")
    weights = read_weights(source)
    assert (weights.num_classes, weights.metadata.embedding, weights.metadata.num_heads) == (0, 5, 2)
    message = (
        r"the image tower of a model of images and text \(LiT\), whose head is not a classifier but a projection to 5"
    )
    with pytest.raises(CheckpointError, match=message):
        by_us(source, image)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "n", "native", notify=quiet)
    config = parse_config(tiny_values(model={"num_classes": 5}, data={"source": "generated"}))
    with pytest.raises(CheckpointError, match=message):
        compare_with_training(weights, config, "abcde")
    convert(source, tmp_path / "f.safetensors", "timm", features=True, notify=quiet)
    assert set(read_weights(str(tmp_path / "f.safetensors")).tensors) == set(state) - {"head.weight", "head.bias"}
    fresh, notes = dict(state, **{"head.bias": state["head.bias"] * 0}), []
    model = config.model.model_copy(update={"init": source})
    found = load_init(config.model_copy(update={"model": model}), fresh, notify=notes.append)
    assert not found["head.bias"].any()
    assert "the head is new, for 5 classes: the weights have no head" in notes


def test_a_single_model_of_big_vision_keeps_its_head(tmp_path):
    arrays = {"params/" + key: array for key, array in google_arrays(tiny_state(), num_heads=2).items()}
    np.savez(tmp_path / "vit.npz", **arrays)
    assert read_weights(str(tmp_path / "vit.npz")).num_classes == 5


def test_a_model_without_a_processor_beside_it_gets_the_default_of_transformers(tmp_path):
    save_file(from_ours(tiny_state(), NAMINGS["huggingface"], num_heads=2), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2}))
    metadata = read_weights(str(tmp_path)).metadata
    assert (metadata.eval_crop, metadata.eval_resize, metadata.interpolation) == ("squash", None, "bilinear")

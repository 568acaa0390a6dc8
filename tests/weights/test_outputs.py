"""The meaning of a foreign model's outputs: probabilities as in transformers, values of a regression, or a refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from foreign import google_arrays
from helpers import tiny_values, vit_ipu
from huggingface_folders import by_us, huggingface_folder, picture, rewrite
from PIL import Image
from safetensors.torch import save_file
from tiny_weights import quiet, tiny_state

from vit_ipu.config_file import parse_config
from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.evaluate import compare_with_training
from vit_ipu.predict import inference_config
from vit_ipu.weights.describe import describe
from vit_ipu.weights.export import convert
from vit_ipu.weights.export_configs import huggingface_config
from vit_ipu.weights.fit import load_init
from vit_ipu.weights.read import read_weights


def by_transformers(folder, image, function=None):
    """Returns the scores that transformers' own pipeline computes, by class.

    Until version 5 the pipeline confused the two kinds of classification, so `function` names the right function.
    """
    from transformers import pipeline

    pipe = pipeline("image-classification", model=str(folder), device="cpu")
    found = pipe(Image.open(str(image)), top_k=5, function_to_apply=function)
    return {row["label"]: row["score"] for row in found}


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

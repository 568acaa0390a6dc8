"""The background of transparent images travels with the weights, as far as a format can state it."""

from __future__ import annotations

import json
import re

import pytest
from helpers import tiny_config, with_random_head
from PIL import Image

from vit_ipu import convert
from vit_ipu.errors import DamagedCheckpoint
from vit_ipu.files import write_checksums
from vit_ipu.model import ViT
from vit_ipu.predict import inference_config
from vit_ipu.weights.describe import describe
from vit_ipu.weights.export import unsupported_description
from vit_ipu.weights.native import ModelDescription, load_description, save_tensors, write_description
from vit_ipu.weights.read import read_weights

CLASSES = tuple(f"class {label}" for label in range(10))


def write_run(folder, background):
    """Writes the checkpoint of a run; returns its description."""
    config = tiny_config(data={"background": background})
    description = ModelDescription.of_run(config, CLASSES, num_train=96)
    folder.mkdir()
    write_description(folder, description)
    save_tensors(with_random_head(ViT(config.model).state_dict()), folder / "model.safetensors")
    write_checksums(folder)
    return description


@pytest.mark.parametrize(("background", "expected"), [(None, None), ("white", (255, 255, 255)), ([1, 2, 3], (1, 2, 3))])
def test_a_conversion_keeps_the_background(tmp_path, background, expected):
    assert write_run(tmp_path / "run", background).preprocessing.background == expected
    convert(tmp_path / "run", tmp_path / "native", "native")
    convert(tmp_path / "run", tmp_path / "timm.safetensors", "timm")
    convert(tmp_path / "timm.safetensors", tmp_path / "again", "native")
    for name in ("run", "native", "timm.safetensors", "again"):
        weights = read_weights(str(tmp_path / name))
        description = describe(weights)
        assert description.preprocessing.background == expected
        assert inference_config(description, weights.path).data.background_rgb == expected


def test_formats_that_do_not_state_a_background_are_noted(tmp_path):
    description = write_run(tmp_path / "run", "white")
    note = "{} does not state that transparent images are laid on white: do so before the model gets them"
    for to in ("timm", "huggingface", "torchvision", "google"):
        assert note.format(to) in unsupported_description(description, to, as_file=False)
    for to in ("native", "onnx"):
        assert unsupported_description(description, to, as_file=False) == []
    plain = write_run(tmp_path / "plain", None)
    assert unsupported_description(plain, "huggingface", as_file=False) == []


def test_the_model_card_states_the_background(tmp_path):
    for background, text in (("white", "RGB, on white where it is transparent; the"), (None, "RGB; the")):
        run, exported = tmp_path / f"run-{background}", tmp_path / f"hub-{background}"
        write_run(run, background)
        convert(run, exported, "huggingface")
        assert text in (exported / "README.md").read_text()


def test_the_example_of_the_model_card_lays_transparent_images_on_the_background(tmp_path, monkeypatch):
    write_run(tmp_path / "run", "lime")
    convert(tmp_path / "run", tmp_path / "hub", "huggingface")
    page = (tmp_path / "hub" / "README.md").read_text()
    assert "but for transparent images: lay them on the colour first, as below." in page
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save("photo.png")
    lines = re.search(r"```python\n(.*?)```", page, re.S).group(1).replace("from transformers import pipeline\n", "")
    names = {}
    exec(lines.split("classify = ")[0], names)
    assert (names["photo"].mode, set(names["photo"].getdata())) == ("RGB", {(0, 255, 0)})
    assert "in classify(photo):" in lines


def test_checkpoints_of_earlier_versions_have_none(tmp_path):
    write_run(tmp_path / "run", None)
    convert(tmp_path / "run", tmp_path / "native", "native")
    for name in ("run", "native"):
        values = json.loads((tmp_path / name / "config.json").read_text())
        del values["config"]["data"]["background"]
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        assert load_description(tmp_path / name).preprocessing.background is None


@pytest.mark.parametrize("color", ["no colour", [1, 2], {"red": 1}, [1, 2, 1e400]])
def test_a_damaged_background_is_refused(tmp_path, color):
    write_run(tmp_path / "run", None)
    convert(tmp_path / "run", tmp_path / "native", "native")
    values = json.loads((tmp_path / "native" / "config.json").read_text())
    values.update(num_train=0)
    values["config"]["data"]["background"] = color
    (tmp_path / "native" / "config.json").write_text(json.dumps(values))
    with pytest.raises(DamagedCheckpoint, match=r"config\.json is damaged: .* is not a colour: give one of "):
        load_description(tmp_path / "native")

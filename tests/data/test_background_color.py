"""`data.background`: the config key, and the same pixels in training, evaluation, prediction and Python."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from helpers import data_config, tiny_config, tiny_values, write_image_folder
from PIL import Image

from vit_ipu.backends.build import resolve_device
from vit_ipu.config import ModelConfig
from vit_ipu.config_file import parse_config
from vit_ipu.config_sections.colors import COLORS, color_text, parse_color
from vit_ipu.data.loading.loader import EvaluationLoader, TrainingFill
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import ConfigError, UserError
from vit_ipu.unused_options import unused_options

WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("white", WHITE), ([1, 2, 3], (1, 2, 3)), ("teal", (0, 128, 128))]
)
def test_a_colour_is_a_name_or_three_numbers(value, expected):
    config = data_config(background=value)
    assert config.background_rgb == expected
    again = type(config).model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config


GENERAL = " is not a colour: give one of black, gray, silver, white, "


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("whit", "whit is not a colour; did you mean 'white'?"),
        ("#ffffff", f"#ffffff{GENERAL}"),
        ([0, 0, 256], f"[0, 0, 256]{GENERAL}"),
        ([0, -1, 0], f"[0, -1, 0]{GENERAL}"),
        ([0, 0], f"[0, 0]{GENERAL}"),
        ([0, 0, 1.0], f"[0, 0, 1.0]{GENERAL}"),
        ([0, 0, True], f"[0, 0, True]{GENERAL}"),
        (0, f"0{GENERAL}"),
    ],
)
def test_another_value_is_refused_in_one_line(value, text):
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny_values(data={"background": value}))
    message = str(caught.value)
    assert message.startswith(f"data.background: {text}")
    assert "\n" not in message
    if GENERAL in message:
        assert message.endswith("or red, green and blue from 0 to 255, such as [255, 255, 255]")


def test_names_of_other_programs_are_known():
    with pytest.raises(ConfigError, match=r"did you mean 'data\.background'|did you mean 'background'"):
        parse_config(tiny_values(data={"bg_color": "white"}))


def test_all_names_are_accepted_and_shown():
    for name, rgb in COLORS.items():
        assert data_config(background=name).background_rgb == rgb
        assert color_text(rgb) == name
    assert color_text((1, 2, 3)) == "[1, 2, 3]"
    assert color_text(None) == "null"


@pytest.mark.parametrize(("text", "expected"), [("white", WHITE), ("1,2,3", (1, 2, 3)), ("[255, 0,0]", (255, 0, 0))])
def test_an_option_gives_a_colour(text, expected):
    assert parse_color(text) == expected
    assert PackOptions.of(8, None, "1MB", "raise", text).background == expected


@pytest.mark.parametrize(
    ("short_side", "text", "message"),
    [
        (8, "whit", r"--background whit is not a colour; did you mean 'white'\?"),
        (8, "1,2", "--background 1,2 is not a colour: give one of black, .*"),
        (8, "1,2,²", "--background 1,2,² is not a colour: give one of black, .*"),
        (None, "white", "--background white is for images that are resized: give --short-side too"),
    ],
)
def test_a_wrong_option_of_pack_is_refused(short_side, text, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        PackOptions.of(short_side, None, "1MB", "raise", text)


def test_a_background_without_effect_is_noted():
    notes = unused_options(tiny_config(data={"background": "white"}))
    assert "data.background has no effect with source sample" in notes
    assert not [note for note in unused_options(tiny_config()) if "background" in note]


# ------------------------------------------------------------------------------------------ pixels


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of black images of which all but one row of pixels is transparent."""
    write_image_folder(tmp_path, count=2)
    for path in tmp_path.rglob("*.png"):
        image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 28, 1))
        image.save(str(path))
    return tmp_path


def config_for(folder, background, **sections):
    data = {"source": "imagefolder", "path": str(folder), "background": background, "horizontal_flip": 0.0}
    sections = {"model": {"num_classes": 2}, "pipeline": {"global_batch_size": 4, "layers_per_ipu": None}, **sections}
    return tiny_config(data={**data, "crop": "center", "num_train": None, "num_eval": None}, **sections)


@pytest.mark.parametrize(("background", "value"), [(None, 0), ("white", 255), ([9, 9, 9], 9)])
def test_training_and_evaluation_use_the_background(folder, background, value):
    config = config_for(folder, background)
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=2)
    expected = np.full((3, 28, 28), value)
    expected[:, 0] = 0
    train, held_out = (open_source(config.data, model, split) for split in ("train", "eval"))
    assert np.array_equal(np.asarray(train.image(0)).transpose(2, 0, 1), expected)  # as reports show it
    pixels = np.zeros((3, 28, 28), np.uint8)
    TrainingFill(train, config)._sample(0, 0, pixels, [])
    assert np.array_equal(pixels, expected)
    [batch] = EvaluationLoader(held_out, config, multiple_of=4, float_format="float32")
    assert np.array_equal(batch.images[0].numpy(), expected)


def test_prediction_and_python_use_the_background_of_the_run(folder, tmp_path, monkeypatch):
    import vit_ipu

    story = importlib.import_module("vit_ipu.predict")
    config = config_for(folder, "white")
    run = vit_ipu.train(config, device="cpu", output=tmp_path / "run", quiet=True)
    image = str(folder / "val/cat/0.png")
    pixels = vit_ipu.load_model(run.path, quiet=True).preprocess(image)
    assert pixels[0, :, 1:].min() == 1  # white, normalised
    assert pixels[0, :, 0].max() == -1
    seen, original = [], story.stack_images
    monkeypatch.setattr(story, "stack_images", lambda stacked, data: seen.append(stacked) or original(stacked, data))
    story.predict(str(run.path), [image], resolve_device("cpu"))
    assert seen[0][0][:, 1:].min() == 255


def test_an_evaluation_with_another_background_is_noted(folder, tmp_path, capsys):
    import vit_ipu

    run = vit_ipu.train(config_for(folder, "white"), device="cpu", output=tmp_path / "run", quiet=True)
    capsys.readouterr()
    vit_ipu.evaluate(config_for(folder, [255, 255, 255]), run.path, device="cpu")
    assert "background" not in capsys.readouterr().out
    vit_ipu.evaluate(config_for(folder, None), run.path, device="cpu")
    assert "data.background is null, but the checkpoint was trained with white" in capsys.readouterr().out

"""timm loads exported models of every shape by the code that convert prints and that the folder's model card has."""

from __future__ import annotations

import functools
import json
import re
from types import SimpleNamespace

import pytest
import timm
import torch
from foreign import randomise
from helpers import write_image_folder
from PIL import Image
from tiny_weights import noise

from vit_ipu.config import ModelConfig
from vit_ipu.files import write_checksums
from vit_ipu.model import ViT
from vit_ipu.weights.native import ModelDescription, Preprocessing, save_tensors, write_description
from vit_ipu.weights.timm_code import _VARIANTS, timm_call, timm_model

SHAPES = {
    "of timm's": {"variant": "vit_tiny_patch16", "image_size": 32},
    "odd": {"width": 64, "depth": 3, "num_heads": 2, "patch_size": 7, "image_size": 28},
    "odd MLP": {"variant": "vit_tiny_patch16", "depth": 2, "mlp_ratio": 3.0, "image_size": 224},
    "odd heads, tanh": {"variant": "vit_tiny_patch16", "num_heads": 6, "image_size": 48, "gelu": "tanh"},
    "epsilon": {"variant": "vit_tiny_patch16", "depth": 1, "image_size": 32, "layer_norm_eps": 1e-3},
}
PIXELS = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), eval_resize=250, interpolation="bicubic")


@pytest.fixture
def write_model(empty_folder):
    """Returns a function that writes a native checkpoint of a shape, and returns its model."""

    def write(shape):
        torch.manual_seed(0)
        config = ModelConfig(num_classes=3, **shape)
        model = randomise(ViT(config).eval())
        (empty_folder / "native").mkdir()
        save_tensors(model.state_dict(), empty_folder / "native" / "model.safetensors")
        write_description(empty_folder / "native", ModelDescription(config, PIXELS, ("<cat>", "dog", "owl")))
        write_checksums(empty_folder / "native")
        return model

    return write


def load(code):
    return eval(code, {"timm": timm, "torch": torch, "functools": functools}).eval()


def same_logits(theirs, model):
    side = model.patch_embed.proj.weight.shape[-1] * round((model.pos_embed.shape[1] - 1) ** 0.5)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(theirs(images), model(images), atol=1e-4)


@pytest.mark.parametrize("target", ["vit.safetensors", "vit.pth", "folder"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_the_printed_code_loads_the_export_strictly(run, write_model, name, target):
    model = write_model(SHAPES[name])
    out = run("convert", "native", target, "--to", "timm").splitlines()
    assert out[-1].startswith("load it with: timm.create_model(")
    theirs = load(out[-1].partition(": ")[2])
    ours = model.state_dict()
    assert set(theirs.state_dict()) == set(ours)
    assert all(torch.equal(value, ours[key]) for key, value in theirs.state_dict().items())
    assert same_logits(theirs, model)


def test_a_published_shape_needs_its_name_alone():
    assert timm_model(ModelConfig(variant="vit_large_patch14")) == ("vit_large_patch14_224", {})
    assert timm_call(ModelConfig(variant="vit_base_patch32"), 1000, file="a.pth") == (
        'timm.create_model("vit_base_patch32_224", num_classes=1000, checkpoint_path="a.pth")'
    )
    assert all(timm.is_model(f"{variant}_224") for variant in _VARIANTS)


def test_an_odd_shape_is_stated_completely():
    code = timm_call(ModelConfig(**SHAPES["odd"]), 3, file='it"s.pth')
    assert code == (
        'timm.create_model("vit_base_patch16_224", patch_size=7, embed_dim=64, depth=3, num_heads=2, img_size=28, '
        'num_classes=3, checkpoint_path="it\\"s.pth")'
    )


@pytest.mark.parametrize("name", ["fotos 🙂", "日本", "it's [red]", 'a"b\\c', "line\nbreak", "not utf-8 \udcff"])
def test_the_code_has_the_path_of_any_target(name):
    made = SimpleNamespace(create_model=lambda *model, **arguments: (*model, arguments.get("checkpoint_path")))
    for place in ({"file": name}, {"folder": name}):
        code = timm_call(ModelConfig(**SHAPES["odd"]), 3, **place)
        assert len(code.splitlines()) == 1
        assert name in [part and part.replace("local-dir:", "") for part in eval(code, {"timm": made})]
    assert '"fotos 🙂"' in timm_call(ModelConfig(**SHAPES["odd"]), 3, file="fotos 🙂")


def test_weights_without_a_head_have_no_classes(run, write_model):
    write_model(SHAPES["odd"])
    out = run("convert", "native", "vit.pth", "--to", "timm", "--features").splitlines()
    assert "num_classes=0, " in out[-1]
    assert load(out[-1].partition(": ")[2]).num_classes == 0
    found = json.loads(run("convert", "native", "v.pth", "--to", "timm", "--features", "--json"))
    assert found["load"] == out[-1].partition(": ")[2].replace("vit.pth", "v.pth")


def test_other_formats_have_no_code_of_timms(run, write_model):
    write_model(SHAPES["odd"])
    assert "load it with" not in run("convert", "native", "hf", "--to", "huggingface")


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_card_of_a_folder_has_code_that_runs(run, write_model, capsys, name):
    model = write_model(SHAPES[name])
    run("convert", "native", "folder", "--to", "timm")
    with open("folder/README.md", encoding="utf-8") as file:
        card = file.read()
    assert "library_name: timm\n" in card
    assert "`config.json` states the same, and `timm.data.create_transform` follows it." in card
    assert "transformers" not in card
    use, alone = re.findall(r"```python\n(.*?)```", card, re.S)
    assert same_logits(load(alone), model)
    noise(70, 90).save("photo.jpg")
    names = {}
    exec(compile(use, "README.md", "exec"), names)
    assert same_logits(names["model"], model)
    lines = [line.rpartition(" ") for line in capsys.readouterr().out.splitlines()]
    assert {label for label, _, _ in lines} == {"<cat>", "dog", "owl"}
    assert sum(float(score) for _, _, score in lines) == pytest.approx(1, abs=1e-5)
    found = json.loads(run("predict", "folder", "photo.jpg", "--device", "cpu", "--json"))["predictions"][0]["classes"]
    ours = {row["name"]: row["probability"] for row in found}  # the pixels of config.json, but for the decoder of JPEGs
    assert {label: float(score) for label, _, score in lines} == pytest.approx(ours, abs=0.01)


def test_the_card_lays_transparent_images_on_their_background(run, empty_folder):
    write_image_folder(empty_folder, splits=["pictures"], count=10)
    for number in range(10):
        Image.new("RGBA", (30, 40), (0, 0, 0, 0)).save(f"pictures/cat/{number}.png")
    run("init", "pictures", "--device", "cpu")
    options = ["--set", "run.updates=1", "--set", "run.epochs=null", "--set", "optim.warmup_updates=0"]
    run("train", "pictures.yaml", *options)
    run("convert", "runs/pictures", "folder", "--to", "timm")
    with open("folder/README.md", encoding="utf-8") as file:
        code = re.findall(r"```python\n(.*?)```", file.read(), re.S)[0]
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save("photo.png")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (names["photo"].mode, names["photo"].getpixel((9, 9))) == ("RGB", (255, 255, 255))

"""`init`: from a folder of images and weights to a commented config that trains."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import vit_ipu

from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.errors import UserError
from vit_ipu.init import init


def test_five_commands_lead_from_a_folder_to_an_exported_model(run, folder):
    out = run("init", "pictures", "--model", "vit.safetensors", "--device", "cpu")
    assert "pictures: 3 classes, 30 images to train on (10 a class), 6 held out\n" in out
    assert "model: vit_tiny_patch16 at 32 px from vit.safetensors, with a new head for 3 classes\n" in out
    assert "wrote pictures.yaml, for cpu; train with:\n  vit-ipu train pictures.yaml --device cpu\n" in out
    commands = re.findall(r"^# vit-ipu (.*)$", Path("pictures.yaml").read_text(), re.M)
    assert [command.split()[0] for command in commands] == ["train", "evaluate", "convert"]
    out = run(*commands[0].split(), "--set", "run.epochs=2")
    assert re.search(r"top-1 [0-9.]+ % after 7 updates", out)
    assert "note: " not in out.replace("note: vit.safetensors does not state these settings", "")
    assert re.search(r"top-1 [0-9.]+ %, .*\n6 images, runs/pictures", run(*commands[1].split()))
    run(*commands[2].split())
    assert Path("pictures.onnx").is_file()
    assert "cat" in run("predict", "runs/pictures", "pictures/cat/0.png")


@pytest.mark.parametrize(("device", "weights"), [("cpu", None), ("cpu", "vit.safetensors"), ("ipu-sim", None)])
def test_the_short_trial_that_a_config_shows_works(run, folder, device, weights):
    run("init", "pictures", "--device", device, *([] if weights is None else ["--model", weights]))
    text = Path("pictures.yaml").read_text()
    train = re.findall(r"^# vit-ipu (train .*)$", text, re.M)[0]
    trial = re.findall(r"^# For a short trial, add to train: (.*)$", text, re.M)[0]
    small = ["--set", "model.depth=4", "--set", "model.image_size=16"] if weights is None else []
    small += ["--set", "pipeline.layers_per_ipu=[1, 1, 1, 1]"] if device == "ipu-sim" else []
    assert "after 20 updates" in run(*shlex.split(f"{train} {trial}"), *small)
    assert Path("runs/pictures-trial/report.html").is_file()


def test_a_run_shorter_than_the_warmup_says_what_makes_it_train(run, folder, monkeypatch, capsys):
    run("init", "pictures", "--device", "cpu")
    command = ["train", "pictures.yaml", "--set", "run.updates=5", "--device", "cpu"]
    code, _, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2
    remedy = re.search(r"such as by (--set optim\.warmup_updates=1)$", err, re.M).group(1)
    assert "after 5 updates" in run(*command, *remedy.split())


def test_a_divided_folder_is_used_as_it_is(run, folder):
    found = json.loads(run("init", "divided", "--device", "cuda", "--json"))
    assert (found["num_train"], found["num_eval"], found["holdout"], found["device"]) == (12, 12, None, "cuda")
    assert load_config("divided.yaml").data.path == "divided"
    shutil.rmtree("divided/val")
    found = json.loads(run("init", "divided", "--output", "other.yaml", "--json"))
    data = load_config("other.yaml").data
    assert (data.path, data.holdout) == ("divided/train", 0.2) == (found["path"], found["holdout"])


def test_odd_files_are_named_and_left_out(run, folder):
    Path("pictures/cat/notes.txt").write_text("x")
    Path("pictures/dog/cut.jpg").write_bytes(b"\xff\xd8\xff")
    Path("pictures/stray.png").write_bytes(b"")
    Path("pictures/cat/Thumbs.db").write_bytes(b"")
    out = run("init", "pictures", "--device", "cpu")
    assert "note: left out 1 entry in pictures (such as in cat)" in out
    assert "note: left out 1 image directly in pictures, such as stray.png" in out
    assert re.search(r"1 of \d+ cannot be read and are left out in training .*cut\.jpg", out)
    assert load_config("pictures.yaml").data.on_error == "skip"


def test_a_config_for_ipus_has_a_pipeline(run, folder):
    run("init", "pictures", "--device", "ipu", "--model", "vit.safetensors")
    config = load_config("pictures.yaml")
    assert config.pipeline.layers_per_ipu == (3, 3, 3, 3)
    assert "PopTorch would refuse" not in run("plan", "pictures.yaml")
    assert "rules hold" in run("compile", "pictures.yaml", "--device", "ipu-sim")


def test_the_name_is_that_of_the_folder_and_the_first_line_names_the_schema(run, folder):
    Path("a: b").mkdir()
    shutil.move("pictures", "a: b/my pets")
    run("init", "a: b/my pets/", "--device", "cpu")
    first, second, *_ = Path("my pets.yaml").read_text().splitlines()
    schema = Path(shipped_configs()["quickstart"]).with_name("config.schema.json").resolve()
    assert first == f"# yaml-language-server: $schema={schema.as_uri()}"
    assert second == "# vit-ipu train 'my pets.yaml' --device cpu"
    assert load_config("my pets.yaml").data.path == "a: b/my pets/"
    os.chdir("divided")
    run("init", ".", "--device", "cpu")
    assert load_config("divided.yaml").data.path == "."


@pytest.mark.parametrize(
    ("name", "device"), [("own_folder_gpu", "cpu"), ("own_folder_pod4", "ipu-sim"), ("own_folder_pod16", "ipu-sim")]
)
def test_the_shipped_configs_for_ones_own_folder_train(run, folder, name, device):
    small = ["model.variant=vit_test", "model.image_size=28", "pipeline.global_batch_size=224", "data.num_workers=0"]
    own = ["data.path=pictures", "model.num_classes=3", "model.init=null", "optim.warmup_updates=0", "run.epochs=1"]
    if device == "ipu-sim":
        small.append("pipeline.layers_per_ipu=[1, 1, 1, 1]")
    sets = [part for override in small + own for part in ("--set", override)]
    assert "top-1" in run("train", name, "--device", device, "--output", "run", *sets)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_config_that_cannot_be_written_completely_leaves_no_file(folder, monkeypatch, error):
    class Full(io.TextIOWrapper):
        def write(self, text):
            raise error

    original = Path.open

    def opened(path, mode="r", *arguments, **options):
        return (
            Full(original(path, f"{mode}b")) if "new.yaml" in path.name else original(path, mode, *arguments, **options)
        )

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises((UserError, KeyboardInterrupt)):
        init("pictures", device="cpu", output=folder / "new.yaml")
    monkeypatch.undo()
    assert not (folder / "new.yaml").exists()


def test_names_with_line_breaks_stay_in_their_comment(run, folder):
    os.rename("pictures/cat", "pictures/x\nmodel: {}")
    run("init", "pictures", "--device", "cpu")
    assert load_config("pictures.yaml").model.num_classes == 3


def test_what_is_assumed_is_noted_with_the_keys_that_change_it_and_marked_in_the_config(run, folder):
    out = run("init", "pictures", "--model", "vit.safetensors", "--device", "cpu", "--output", "a.yaml")
    assert (
        "note: vit.safetensors does not state these settings, so they are assumed, as timm has them by default: 3 "
        "attention heads, erf GELU, layer norm epsilon 1e-06, a head on the class token, pixel mean 0.5 0.5 0.5, pixel "
        "deviation 0.5 0.5 0.5, a centre crop, a resize of the short side to 35, bicubic resizing; if one is wrong, "
        "set it in a.yaml: model.num_heads, model.gelu, model.layer_norm_eps, data.mean, data.std, data.eval_crop, "
        "data.eval_resize, data.interpolation\n"
    ) in out
    text = Path("a.yaml").read_text()
    assert "  eval_resize: 35  # assumed: the weights do not state it\n" in text
    assert "  interpolation: bicubic  # assumed: the weights do not state it\n" in text
    run("convert", "vit.safetensors", "vit.pth", "--to", "torchvision")
    out = run("init", "pictures", "--model", "vit.pth", "--trust-pickle", "--device", "cpu", "--output", "b.yaml")
    assert "vit.pth does not state these settings, so they are assumed, as torchvision has them by default: 3 " in out
    text = Path("b.yaml").read_text()
    assert "  mean: [0.485, 0.456, 0.406]  # assumed: the weights do not state it\n" in text
    run("train", "a.yaml", "--set", "run.updates=1", "--set", "run.epochs=null", "--set", "optim.warmup_updates=0")
    run("init", "pictures", "--model", "runs/a", "--device", "cpu", "--output", "c.yaml")
    assert "  interpolation: bicubic  # as the weights expect\n" in Path("c.yaml").read_text()

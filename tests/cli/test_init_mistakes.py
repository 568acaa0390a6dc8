"""Every mistake on the way from a folder of images to a config that trains is one line, and writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_values, vit_ipu, write_config, write_image_folder
from PIL import Image
from safetensors.torch import save_file
from starting_material import write_weights


def a_class_of(count, name="bird"):
    def prepare(root: Path) -> None:
        (root / "pictures" / name).mkdir()
        for index in range(count):
            Image.new("RGB", (30, 30)).save(str(root / "pictures" / name / f"{index}.png"))

    return prepare


def only(*kept):
    return lambda root: [shutil.rmtree(str(path)) for path in (root / "pictures").iterdir() if path.name not in kept]


def broken_images(root: Path) -> None:
    for path in root.glob("pictures/*/*.png"):
        path.write_bytes(b"GIF")


INIT = ["init", "pictures", "--device", "cpu"]
WITH_WEIGHTS = [*INIT, "--model"]
# What is prepared, the command, and the texts that its error line must contain.
MISTAKES = {
    "no folder": (None, ["init"], ["FOLDER"]),
    "a folder that is not there": (None, ["init", "nowhere"], ["nowhere does not exist", "one folder of images"]),
    "a file": (None, ["init", "vit.safetensors"], ["vit.safetensors is a file", "one folder of images"]),
    "an empty folder": (lambda p: (p / "empty").mkdir(), ["init", "empty"], ["neither images nor folders"]),
    "images without folders": (None, ["init", "pictures/cat"], ["12 images but no folders", "folder of their own"]),
    "one class": (only("cat"), INIT, ["only one class folder, cat", "a second class"]),
    "a folder too many": (
        lambda p: ((p / "zip").mkdir(), shutil.move(str(p / "pictures"), str(p / "zip/pictures"))),
        ["init", "zip"],
        ["only one class folder, pictures", "give zip/pictures"],
    ),
    "an empty class": (
        a_class_of(0),
        INIT,
        ["no images in the class folder pictures/bird: add images, or remove the folder"],
    ),
    "many empty classes": (
        lambda p: [(p / "pictures" / f"b{number}").mkdir() for number in range(6)],
        INIT,
        ["no images in 6 class folders of pictures: b0, b1, b2, b3 (and 2 more); add images, or remove the folders"],
    ),
    "one image a class": (
        lambda p: write_image_folder(p, splits=["few"], count=1),
        ["init", "few"],
        ["every class in few has one image", "add images"],
    ),
    "images that cannot be read": (broken_images, INIT, ["none of 30 images can be read"]),
    "train and val under other names": (
        lambda p: ((p / "divided/train").rename(p / "divided/Train"), (p / "divided/val").rename(p / "divided/dev")),
        ["init", "divided"],
        ["have folders instead of images", "call them train and val"],
    ),
    "no training images": (
        lambda p: shutil.rmtree(str(p / "divided/train")),
        ["init", "divided"],
        ["held-out images but no folder train", "divided/train"],
    ),
    "classes that differ": (
        lambda p: (p / "divided/val/cat").rename(p / "divided/val/kat"),
        ["init", "divided"],
        ["different classes", "cat", "only in train"],
    ),
    "a Hugging Face set": (lambda p: (p / "pictures/dataset_dict.json").touch(), INIT, ["data.source huggingface"]),
    "shards": (lambda p: (p / "pictures/train-0.tar").touch(), INIT, ["data.source shards", "pipeline_configs"]),
    "ImageNet": (lambda p: (p / "pictures/ILSVRC").mkdir(), INIT, ["data.source imagenet"]),
    "a home folder that does not exist": (None, ["init", "~nobody_here/x"], ["cannot expand ~", "absolute path"]),
    "a config that exists": (lambda p: (p / "pictures.yaml").write_text("mine"), INIT, ["exists and stays as it is"]),
    "an output that exists": (None, [*INIT, "--output", "vit.safetensors"], ["exists and stays as it is", "--output"]),
    "an output that is a folder": (None, [*INIT, "--output", "divided"], ["divided is a folder", "--output"]),
    "an output without a folder": (None, [*INIT, "--output", "no/x.yaml"], ["no/x.yaml: no is not a folder: make it"]),
    "an output with a long name": (None, [*INIT, "--output", "x" * 300], ["File name too long"]),
    "an output that is a dead link": (
        lambda p: (p / "pictures.yaml").symlink_to("nowhere"),
        INIT,
        ["pictures.yaml exists and stays as it is"],
    ),
    "the root of the file system": (None, ["init", "/"], ["/ is the root of the file system: give the folder that"]),
    "an empty name": (None, ["init", ""], ["FOLDER is empty: give a value"]),
    "a wrong folder and an unknown device": (None, ["init", "nowhere", "--device", "gpu"], ["nowhere does not exist"]),
    "a file and an output that exists": (
        None,
        ["init", "vit.safetensors", "--output", "vit.safetensors"],
        ["vit.safetensors is a file: give the folder"],
    ),
    "class folders without images": (
        lambda p: (
            [(p / "bare" / name).mkdir(parents=True) for name in ("cat", "dog")]
            + [(p / "bare" / "cat" / "notes.txt").touch()]
        ),
        ["init", "bare"],
        ["no images below bare: expected bare/CLASS/*.jpg"],
    ),
    "an unknown device": (None, ["init", "pictures", "--device", "gpu"], ["--device gpu: unknown", "cuda"]),
    "weights that are not there": (None, [*WITH_WEIGHTS, "no.safetensors"], ["--model: no checkpoint at no.safe"]),
    "a variant as weights": (None, [*WITH_WEIGHTS, "vit_base_patch16"], ["name of a shape", "leave --model out"]),
    "weights without a hash": (None, [*WITH_WEIGHTS, "https://x.org/a.pth"], ["--model:", "sha256"]),
    "weights with another hash": (None, [*WITH_WEIGHTS, "vit.safetensors", "--sha256", "0" * 64], ["has the sha256"]),
    "weights that are an image": (None, [*WITH_WEIGHTS, "pictures/cat/0.png"], ["--model:", "0.png"]),
    "a folder without weights": (None, [*WITH_WEIGHTS, "divided"], ["--model: divided holds no weights"]),
    "weights that are damaged": (
        lambda p: (p / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        [*WITH_WEIGHTS, "cut.safetensors"],
        ["--model: cannot read cut.safetensors"],
    ),
    "weights of another network": (
        lambda p: save_file({"conv1.weight": torch.zeros(2)}, str(p / "resnet.safetensors")),
        [*WITH_WEIGHTS, "resnet.safetensors"],
        ["--model: resnet.safetensors", "conv1.weight"],
    ),
    "heads that are not known": (
        lambda p: write_weights(p / "odd.safetensors", width=48, num_heads=4),
        [*WITH_WEIGHTS, "odd.safetensors"],
        ["the number of attention heads is not known", "--num-heads"],
    ),
    "heads that do not divide": (
        None,
        [*WITH_WEIGHTS, "vit.safetensors", "--num-heads", "5"],
        ["width 192 is not a multiple of num_heads 5"],
    ),
    "a config of that name": (None, ["config", "quikstart"], ["quikstart", "did you mean quickstart?"]),
    "a config with a mistake": (
        lambda p: (p / "bad.yaml").write_text("model: {variant: vit_test}\nlr: 1\n"),
        ["config", "bad.yaml"],
        ["bad.yaml: lr: unknown key", "'optim.learning_rate'", "data.source"],
    ),
    "a setting for all configs": (None, ["config", "--set", "run.seed=1"], ["--set needs the NAME of a config"]),
    "a setting that is wrong": (None, ["config", "quickstart", "--set", "run.sed=1"], ["--set run.sed=1: unknown key"]),
    "a holdout of everything": (
        lambda p: write_config(p, data={"source": "imagefolder", "path": "pictures", "holdout": 1.0}),
        ["train", "tiny.yaml", "--device", "cpu"],
        ["tiny.yaml: data.holdout: should be less than 1, got 1.0"],
    ),
    "a holdout of a divided folder": (
        lambda p: write_config(
            p, model={"num_classes": 3}, data={"source": "imagefolder", "path": "divided", "holdout": 0.1}
        ),
        ["train", "tiny.yaml", "--device", "cpu"],
        ["data.holdout 0.1: divided has the folder train", "remove data.holdout"],
    ),
    "classes without a holdout": (
        lambda p: write_config(p, model={"num_classes": 3}, data={"source": "imagefolder", "path": "pictures"}),
        ["train", "tiny.yaml", "--device", "cpu"],
        ["no folder train in pictures", "set data.holdout: 0.1"],
    ),
    "IPUs without a pipeline": (
        lambda p: (p / "one.yaml").write_text(
            yaml.safe_dump({name: part for name, part in tiny_values().items() if name != "pipeline"})
        ),
        ["train", "one.yaml", "--device", "ipu-sim"],
        ["pipeline.global_batch_size and pipeline.micro_batch_size must be given for IPUs", "vit-ipu init FOLDER"],
    ),
    "a folder as a config": (None, ["train", "pictures"], ["cannot read the config pictures", "vit-ipu init pictures"]),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_is_one_line_and_writes_nothing(monkeypatch, capsys, folder, name):
    prepare, command, expected = MISTAKES[name]
    if prepare is not None:
        prepare(folder)
    before = {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 2, (out, err)
    assert out == "" or command[0] != "init"
    assert err.startswith("vit-ipu: ")
    assert err.count("\n") == 1
    for text in expected:
        assert text in err
    assert {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))} == before


def test_there_are_enough_kinds_of_mistakes():
    assert len(MISTAKES) >= 40

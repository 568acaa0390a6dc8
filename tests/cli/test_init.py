"""`init` and `config`: from a folder of images to a trained model, and every mistake as one line."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_values, vit_ipu, write_config, write_image_folder
from PIL import Image
from safetensors.torch import save_file

from vit_ipu.config import ModelConfig
from vit_ipu.config_file import load_config, parse_config, shipped_configs
from vit_ipu.config_reference import json_schema
from vit_ipu.errors import UserError
from vit_ipu.init import init
from vit_ipu.model import ViT
from vit_ipu.runs.folder import RunFolder

CLASSES = ("cat", "dog", "owl")


def write_weights(path: Path, **shape) -> None:
    """Writes random weights by timm's names, of a shape whose heads are known, in a file without a description."""
    model = ModelConfig(**{"variant": "vit_tiny_patch16", "depth": 12, "image_size": 32, "num_classes": 7, **shape})
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in ViT(model).state_dict().items()}, str(path))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    write_image_folder(root, splits=["pictures"], classes=CLASSES, count=12)
    write_image_folder(root / "divided", classes=CLASSES, count=4)
    write_weights(root / "vit.safetensors")
    return root


@pytest.fixture
def folder(material, empty_folder):
    """Changes into a folder with pictures (12 of 3 classes), divided (train and val) and vit.safetensors."""
    for entry in material.iterdir():
        if entry.is_dir():
            shutil.copytree(str(entry), entry.name)
        else:
            os.link(str(entry), entry.name)
    return empty_folder


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


@pytest.mark.parametrize("name", [".", "../pictures"])
def test_runs_are_not_written_among_the_class_folders(monkeypatch, capsys, folder, name):
    monkeypatch.chdir("pictures")
    before = sorted(os.listdir())
    code, out, err = vit_ipu(monkeypatch, capsys, "init", name)
    assert (code, out) == (2, "")
    assert err == (
        f"vit-ipu: {name} contains the current folder, so runs would lie among its class folders: go to another "
        "folder, such as .., and give the path from there\n"
    )
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("output", ["pictures", "pictures/run", "pictures/cat/run", "link/run"])
def test_a_run_folder_among_the_class_folders_is_refused(monkeypatch, capsys, folder, run, output):
    run("init", "pictures", "--device", "cpu")
    os.symlink("pictures", "link")
    before = sorted(os.listdir("pictures"))
    code, _, err = vit_ipu(monkeypatch, capsys, "train", "pictures.yaml", "--device", "cpu", "--output", output)
    assert code == 2
    assert err == (
        f"vit-ipu: the run folder {output} is in data.path pictures, whose folders are classes: give an --output "
        "outside of it\n"
    )
    assert sorted(os.listdir("pictures")) == before


def test_a_run_folder_beside_packed_images_of_which_some_are_held_out_is_allowed(tmp_path):
    config = parse_config(tiny_values(data={"source": "shards", "path": str(tmp_path), "holdout": 0.1}))
    folder = RunFolder.create(tmp_path / "run", config)
    assert folder.config.is_file()
    folder.release()


def test_a_run_folder_beside_divided_images_is_allowed(folder, run):
    run("init", "divided", "--device", "cpu")
    small = ["run.updates=1", "run.epochs=null", "run.evaluate_every=null", "run.keep_best=null", "model.depth=1"]
    overrides = [part for one in [*small, "optim.warmup_updates=0"] for part in ("--set", one)]
    assert "run folder divided/run\n" in run(
        "train", "divided.yaml", "--device", "cpu", "--output", "divided/run", *overrides
    )


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
    "an empty class": (a_class_of(0), INIT, ["no images in the class folder pictures/bird", "remove empty"]),
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
    "an empty name": (None, ["init", ""], ["FOLDER '' is empty: give the folder that has"]),
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


# ------------------------------------------------------------------------------------------- config


def test_the_list_names_every_shipped_config(run):
    out = run("config")
    for name in shipped_configs():
        assert f"\n{name}\n  " in f"\n{out}"
    assert max(map(len, out.splitlines())) <= 80
    listed = json.loads(run("config", "--json"))["configs"]
    assert list(listed) == list(shipped_configs())
    assert all(len(purpose) > 15 for purpose in listed.values())


def test_a_config_is_shown_with_all_its_keys(run):
    shown = yaml.safe_load(run("config", "quickstart", "--set", "run.seed=7"))
    assert parse_config(json.loads(run("config", "quickstart", "--json"))) == load_config("quickstart")
    assert shown["run"]["seed"] == 7
    assert set(shown["pipeline"]) == set(type(load_config("quickstart").pipeline).model_fields)


def test_the_schema_is_printed(run):
    assert json.loads(run("config", "--schema")) == json_schema()


def draw(path: Path, size=(30, 40), opacity=0) -> None:
    Image.new("RGBA", size, (0, 0, 0, opacity)).save(str(path))


def test_pictures_with_transparency_get_a_background(run, folder):
    out = run("init", "pictures", "--device", "cpu")
    assert "transparency" not in out
    assert "background" not in Path("pictures.yaml").read_text()
    draw(Path("pictures/cat/0.png"), opacity=255)  # opaque, and so not counted
    draw(Path("pictures/cat/1.png"))
    out = run("init", "pictures", "--device", "cpu", "--output", "one.yaml")
    assert "note: 1 of 30 pictures has transparency: data.background: white is written\n" in out
    for path in Path("pictures/dog").iterdir():
        draw(path)
    found = run("init", "pictures", "--device", "cpu", "--output", "many.yaml")
    assert "note: 11 of 30 pictures have transparency: data.background: white is written\n" in found
    line = "  background: white  # pictures are laid on it where they are transparent\n"
    assert line in Path("many.yaml").read_text()
    out = run("train", "many.yaml", "--device", "cpu", "--set", "run.epochs=1", "--set", "optim.warmup_updates=0")
    assert "transparency" not in out
    assert load_config("runs/many/config.yaml").data.background_rgb == (255, 255, 255)


def test_weights_of_a_run_bring_their_background(run, folder):
    sets = ["run.epochs=1", "optim.warmup_updates=0", "data.background=teal"]
    run("init", "pictures", "--device", "cpu")
    run("train", "pictures.yaml", "--device", "cpu", *(part for text in sets for part in ("--set", text)))
    run("init", "pictures", "--model", "runs/pictures", "--output", "again.yaml")
    assert "  background: teal  # as the weights expect\n" in Path("again.yaml").read_text()
    draw(Path("pictures/cat/0.png"))
    out = run("init", "pictures", "--model", "runs/pictures", "--output", "more.yaml")
    assert "note: 1 of 30 pictures has transparency: data.background: teal is written\n" in out


def test_pictures_far_above_the_median_are_named(run, folder):
    Image.new("L", (100, 160)).save("pictures/owl/0.png")
    out = run("init", "pictures", "--device", "cpu")
    assert "note: the largest picture is pictures/owl/0.png with 100 x 160 pixels\n" in out
    Image.new("L", (100, 110)).save("pictures/owl/0.png")
    assert "largest" not in run("init", "pictures", "--device", "cpu", "--output", "other.yaml")


@pytest.mark.parametrize("name", ["pictures", "divided"])
def test_pictures_of_many_megapixels_are_named_with_a_remedy(run, folder, name):
    owl = Path(name, "owl") if name == "pictures" else Path(name, "train/owl")
    Image.new("L", (5000, 4001)).save(str(owl / "0.png"))
    Image.new("L", (5000, 4000)).save(str(owl / "1.png"))
    found = json.loads(run("init", name, "--device", "cpu", "--output", "x.yaml", "--json"))
    assert (found["num_large"], found["largest"]) == (1, str(owl / "0.png"))
    out = run("init", name, "--device", "cpu")
    note = f"note: 1 of {found['num_train']} pictures has more than 20 megapixels, the largest {owl}/0.png with "
    note += f"5,000 x 4,001, and will take long to load: vit-ipu pack {name} SHARDS --short-side 256"
    assert f"{note} makes small copies, and data.source: shards with data.path: SHARDS trains from them\n" in out
    draw(owl / "1.png")
    out = run("init", name, "--device", "cpu", "--output", "y.yaml")
    assert f"vit-ipu pack {name} SHARDS --short-side 256 --background white makes small copies" in out
    packed = run("pack", name, "shards", "--short-side", "256", "--background", "white", "--workers", "1")
    assert "shards/train: " in packed
    settings = ["data.source=shards", "data.path=shards", "run.epochs=1", "optim.warmup_updates=0"]
    options = [part for setting in settings for part in ("--set", setting)]
    trained = json.loads(run("train", "y.yaml", "--device", "cpu", *options, "--json"))
    assert trained["num_images"] == (6 if name == "pictures" else 12)

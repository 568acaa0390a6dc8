"""`init` looks at the pictures: transparent ones, those that are far larger, and classes with none held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vit_ipu.config_file import load_config


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


def test_classes_without_held_out_images_are_named_by_init_training_and_evaluation_and_in_the_report(run, folder):
    for name in ("bat", "bee"):
        Path("pictures", name).mkdir()
        draw(Path("pictures", name, "0.png"), opacity=255)
    note = (
        "note: 2 of 5 classes have no held-out images, so no evaluation measures them: bat, bee; add images of them\n"
    )
    assert run("init", "pictures", "--device", "cpu").count(note) == 1
    found = json.loads(run("init", "pictures", "--device", "cpu", "--output", "x.yaml", "--json"))
    assert found["not_held_out"] == ["bat", "bee"]
    short = ["--set", "run.updates=1", "--set", "optim.warmup_updates=0"]
    assert run("train", "pictures.yaml", "--device", "cpu", *short).count(note) == 1
    assert run("evaluate", "pictures.yaml", "--checkpoint", "runs/pictures", "--device", "cpu").count(note) == 1
    assert "Not measured, as no image of them was evaluated: bat, bee." in Path("runs/pictures/report.html").read_text()


def test_an_empty_held_out_folder_is_named_by_init(run, folder):
    for path in Path("divided/val/owl").iterdir():
        path.unlink()
    out = run("init", "divided", "--device", "cpu")
    assert "1 of 3 classes has no held-out images, so no evaluation measures it: owl; add images of it\n" in out


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

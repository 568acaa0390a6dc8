"""One folder of class folders, of which data.holdout keeps a share of each class for evaluation."""

from __future__ import annotations

import shutil

import pytest
from helpers import data_config, tiny_config, tiny_values, vit_ipu, write_config, write_image_folder

from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.data.sources.holdout import num_held_out
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import ConfigError, DataError
from vit_ipu.evaluate import differences_from
from vit_ipu.weights.native import ModelDescription


@pytest.fixture
def root(tmp_path):
    """Returns a folder of 20 cats and 5 dogs."""
    write_image_folder(tmp_path, splits=["images"], classes=["cat"], count=20)
    write_image_folder(tmp_path, splits=["images"], classes=["dog"], count=5)
    return tmp_path / "images"


def config_for(root, holdout=0.2) -> Config:
    every = {"num_train": None, "num_eval": None}
    return tiny_config(
        model={"num_classes": 2}, data={"source": "imagefolder", "path": str(root), "holdout": holdout, **every}
    )


def names(root, split, holdout=0.2):
    config = config_for(root, holdout)
    source = open_source(config.data, config.model, split)
    for index in (0, len(source) - 1):
        assert source.picture(index).name == source.name(index)
        assert source.classes[source.labels[index]] in source.name(index)
    return [source.name(index) for index in range(len(source))]


def test_every_image_is_in_one_split_and_each_class_gives_its_share(root):
    train, held_out = names(root, "train"), names(root, "eval")
    assert len(train) == 20
    assert sorted(train + held_out) == sorted(map(str, root.glob("*/*.png")))
    assert sum("/cat/" in name for name in held_out) == 4
    assert sum("/dog/" in name for name in held_out) == 1


def test_the_choice_depends_on_names_alone(root, tmp_path):
    before = [name[len(str(root)) :] for name in names(root, "eval")]
    moved = shutil.move(str(root), str(tmp_path / "elsewhere"))
    assert [name[len(moved) :] for name in names(moved, "eval")] == before


def test_an_image_that_is_added_moves_at_most_one_other(root):
    before = set(names(root, "eval"))
    shutil.copy(str(root / "cat" / "0.png"), str(root / "cat" / "new.png"))
    after = set(names(root, "eval"))
    assert len(before - after) <= 1
    assert len(after - before) <= 1


@pytest.mark.parametrize(
    ("images", "share", "expected"),
    [(1, 0.5, 0), (2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (10, 0.25, 2), (10, 0.99, 9), (1000, 0.1, 100)],
)
def test_at_least_one_of_two_images_is_held_out_and_one_is_trained_on(images, share, expected):
    assert num_held_out(images, share) == expected


def refusal(config, split="train"):
    with pytest.raises(DataError) as caught:
        open_source(config.data, config.model, split)
    return str(caught.value)


def test_a_folder_that_is_divided_already_is_refused(root):
    write_image_folder(root.parent / "divided")
    text = refusal(config_for(root.parent / "divided"))
    assert "data.holdout 0.2" in text
    assert "has the folder train, so its images are divided already" in text
    assert f"give data.path: {root.parent / 'divided' / 'train'}" in text


def test_a_folder_of_classes_without_holdout_names_the_key(root):
    assert "if these are the classes, set data.holdout: 0.1" in refusal(config_for(root, None))


def test_other_folders_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no class folders in" in refusal(config_for(tmp_path / "empty"))
    write_image_folder(tmp_path, splits=["single"], count=1)
    assert "every class in" in refusal(config_for(tmp_path / "single"))
    (root / "bird").mkdir()
    assert "no images in the class folder" in refusal(config_for(root))


def test_a_share_is_above_0_and_below_1():
    with pytest.raises(ConfigError, match=r"data\.holdout"):
        parse_config(tiny_values(data={"source": "imagefolder", "holdout": 1.0}))


@pytest.mark.parametrize("source", ["sample", "shards"])
def test_other_sources_hold_out_a_part_of_their_training_images(tmp_path, root, source, monkeypatch, capsys):
    data = {"source": source, "path": None, "num_train": None, "num_eval": None}
    if source == "shards":
        divide(root)
        assert vit_ipu(monkeypatch, capsys, "pack", root, tmp_path / "shards", "--workers", "1")[0] == 0
        data["path"] = str(tmp_path / "shards")
    whole = parse_config(tiny_values(model={"num_classes": 10 if source == "sample" else 2}, data=data))
    divided = whole.model_copy(update={"data": whole.data.model_copy(update={"holdout": 0.25})})
    training = open_source(whole.data, whole.model, "train")
    kept, held_out = (open_source(divided.data, divided.model, split) for split in ("train", "eval"))
    everything = sorted(pixels(training))
    assert sorted([*pixels(kept), *pixels(held_out)]) == everything
    for label in range(whole.model.num_classes):
        of_class = int((training.labels == label).sum())
        assert int((held_out.labels == label).sum()) == num_held_out(of_class, 0.25) > 0
    again = open_source(divided.data, divided.model, "eval")
    assert list(pixels(again)) == list(pixels(held_out))


def pixels(source):
    return [(int(label), source.image(index).tobytes()) for index, label in enumerate(source.labels)]


def divide(root):
    """Moves the class folders into train, and copies two images of each into val."""
    classes = sorted(root.iterdir())
    for folder in classes:
        (root / "val" / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:2]:
            shutil.copy(str(image), str(root / "val" / folder.name))
    (root / "train").mkdir()
    for folder in classes:
        folder.rename(root / "train" / folder.name)


def test_training_images_of_one_a_class_cannot_be_divided():
    config = parse_config(
        tiny_values(model={"num_classes": 500}, data={"source": "generated", "num_train": 3, "holdout": 0.5})
    )
    with pytest.raises(DataError, match="holdout 0.5: every class of data.source generated has one training image"):
        open_source(config.data, config.model, "eval")


def test_a_run_resumes_with_the_same_share_only(monkeypatch, capsys, root):
    monkeypatch.chdir(root.parent)
    values = config_for(root).model_dump(mode="json", exclude_unset=True)
    config = write_config(root.parent, **values)
    command = ["train", config, "--device", "cpu", "--output", "run"]
    assert vit_ipu(monkeypatch, capsys, *command)[0] == 0
    resume = [*command, "--resume", "--set", "data.holdout=0.4"]
    assert "data.holdout 0.2, not 0.4" in vit_ipu(monkeypatch, capsys, *resume)[2]
    code, _, err = vit_ipu(monkeypatch, capsys, *resume, "--allow-config-change", "data.holdout")
    assert code == 2
    assert "give the same images" in err
    code, out, _ = vit_ipu(monkeypatch, capsys, "evaluate", config, "--checkpoint", "run", "--set", "data.holdout=0.4")
    assert code == 0
    assert "data.holdout is 0.4, but was 0.2 in training: some of these images may have been trained on" in out


def test_an_equal_share_is_not_noted(root):
    config = config_for(root)
    description = ModelDescription.of_run(config, ("cat", "dog"), 20)
    assert differences_from(description, config, ("cat", "dog")) == []
    assert data_config().holdout is None

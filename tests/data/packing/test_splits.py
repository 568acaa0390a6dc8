"""Packing a folder with class folders directly in it: one split, from which data.holdout takes the held-out images."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from helpers import data_config, vit_ipu, write_config, write_image_folder
from packed import run_pack, write_two_classes

from vit_ipu.config import ModelConfig
from vit_ipu.data.sources.registry import open_source
from vit_ipu.data.sources.shard_index import INDEX
from vit_ipu.errors import DataError, UserError

NOTE = (
    "note: pictures has no folders train and val, so all of its images are packed as training images: train from them "
    "with data.holdout, such as 0.1, which holds out a tenth of each class\n"
)


@pytest.fixture
def pictures(empty_folder):
    write_image_folder(empty_folder, splits=["pictures"], classes=("cat", "dog", "owl"), count=10)
    return empty_folder / "pictures"


def open_shards(split, holdout=None):
    config = data_config(source="shards", path="shards", holdout=holdout)
    return open_source(config, ModelConfig(variant="vit_test", image_size=28, num_classes=3), split)


def colors(source):
    return [source.image(index).getpixel((0, 0)) for index in range(len(source))]


def test_undivided_images_are_packed_in_the_order_of_the_folder(pictures, run):
    out = run("pack", "pictures", "shards", "--workers", "1")
    assert NOTE in out
    assert "shards/train: 30 images in 1 shard " in out
    assert sorted(os.listdir("shards")) == ["train"]
    source = open_shards("train")
    assert source.classes == ("cat", "dog", "owl")
    assert source.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert colors(source) == [(80 * label, min(40 * index, 255), 7) for label in range(3) for index in range(10)]
    assert "shards/train: 30 images in shards that match" in run("pack", "pictures", "shards", "--verify")
    assert "(1 kept)" in run("pack", "pictures", "shards", "--workers", "1")


def test_training_holds_out_a_share_of_each_class(pictures, run):
    run("pack", "pictures", "shards", "--workers", "1")
    train, held_out = open_shards("train", 0.2), open_shards("eval", 0.2)
    assert np.bincount(train.labels).tolist() == [8, 8, 8]
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    assert sorted(colors(train) + colors(held_out)) == sorted(colors(open_shards("train")))
    data = {"source": "shards", "path": "shards", "holdout": 0.2, "num_train": None, "num_eval": None}
    pipeline = {"global_batch_size": 8, "micro_batch_size": 1}
    write_config(pictures.parent, data=data, model={"num_classes": 3}, pipeline=pipeline)
    assert json.loads(run("train", "tiny.yaml", "--device", "cpu", "--json"))["num_images"] == 6


def test_training_without_a_holdout_names_the_key(pictures, run):
    run("pack", "pictures", "shards", "--workers", "1")
    remedy = "has train; data.holdout: 0.1 holds out a tenth of the training images of each class"
    with pytest.raises(DataError, match=f"^no folder val or .* in shards, which {remedy}$"):
        open_shards("eval")


def test_a_half_packed_divided_folder_is_not_taken_for_one_split(tmp_path, monkeypatch, capsys):
    run_pack(write_two_classes(tmp_path / "images"), tmp_path / "shards")
    for file in (tmp_path / "shards" / "val").iterdir():
        file.unlink()
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", tmp_path / "images", tmp_path / "shards", "--verify")
    assert code == 2
    assert f"{tmp_path}/shards/val is not completely packed" in err


def test_held_out_images_of_an_earlier_pack_are_not_left_beside_other_images(pictures, tmp_path):
    run_pack(write_two_classes(tmp_path / "images"), tmp_path / "shards")
    message = "shards/val has images that were packed from another folder: give another TARGET$"
    with pytest.raises(UserError, match=message):
        run_pack(pictures, tmp_path / "shards", rescan=True)


@pytest.mark.parametrize("target", ["pictures", "pictures/shards", "pictures/cat/shards"])
def test_a_target_in_an_undivided_folder_is_refused(pictures, monkeypatch, capsys, target):
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", "pictures", target)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{target} is in pictures, among the images: give another TARGET" in err


def test_a_folder_with_training_images_alone_is_not_undivided(tmp_path, monkeypatch, capsys):
    write_image_folder(tmp_path / "images", splits=["train"])
    code, _, err = vit_ipu(monkeypatch, capsys, "pack", tmp_path / "images", tmp_path / "shards")
    assert (code, err.count("\n")) == (2, 1)
    assert f"no folder val or valid or validation or test in {tmp_path}/images, which has train" in err
    assert run_pack(tmp_path / "images" / "train", tmp_path / "shards")["train"].samples == 6
    assert INDEX in os.listdir(str(tmp_path / "shards" / "train"))

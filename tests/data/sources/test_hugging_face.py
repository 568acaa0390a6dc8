"""Folders that Hugging Face's `datasets` saved."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from helpers import data_config
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError

NAMES = ["ant", "bee", "cow"]
LABELS = [2, 0, 1, 1]


def open_split(path, split="train"):
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=3)
    return open_source(data_config(source="huggingface", path=str(path)), model, split)


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def datasets():
    import datasets

    return datasets


def make_split(datasets, labels=LABELS, image="image", label="label", names=NAMES, **columns):
    values = {image: [{"bytes": png(place), "path": None} for place in range(len(labels))], label: labels}
    kinds = {image: datasets.Image(), label: datasets.ClassLabel(names=names) if names else datasets.Value("int64")}
    for name in columns:
        kinds[name] = datasets.Value("string")
    return datasets.Dataset.from_dict(dict(values, **columns), features=datasets.Features(kinds))


def save(datasets, path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(path))


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label"), ("image", "labels")])
@pytest.mark.parametrize("held_out", ["validation", "val", "valid", "test"])
def test_images_are_read_as_they_were_saved(tmp_path, datasets, image, label, held_out):
    train = make_split(datasets, image=image, label=label, caption=["a"] * 4)
    save(datasets, tmp_path / "d", train=train, **{held_out: make_split(datasets, [1, 1], image, label)})
    source = open_split(tmp_path / "d")
    assert (source.classes, source.labels.tolist(), source.labels.dtype) == (tuple(NAMES), LABELS, np.int64)
    assert [source.image(index).getpixel((0, 0))[0] for index in (3, 0, 2, 1)] == [3, 0, 2, 1]
    assert source.picture(np.int64(2)).size == (9, 7)
    assert open_split(tmp_path / "d", "eval").labels.tolist() == [1, 1]


def test_a_shuffled_set_keeps_labels_and_images_together(tmp_path, datasets):
    save(datasets, tmp_path / "d", train=make_split(datasets).shuffle(seed=1).select([2, 0, 3]))
    source = open_split(tmp_path / "d")
    assert len(source) == 3
    assert [LABELS[source.image(index).getpixel((0, 0))[0]] for index in range(3)] == source.labels.tolist()


def test_an_image_given_as_a_file_is_read_and_a_missing_image_is_named(tmp_path, datasets):
    (tmp_path / "a.png").write_bytes(png(7))
    kinds = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    values = {"image": [{"bytes": None, "path": str(tmp_path / "a.png")}, None], "label": [0, 1]}
    table = datasets.Dataset.from_dict(values, features=kinds)
    save(datasets, tmp_path / "d", train=table)  # save_to_disk stores the bytes of the file
    source = open_split(tmp_path / "d")
    assert source.image(0).getpixel((0, 0))[0] == 7
    with pytest.raises(DataError, match=r"d/train\[1\] has no image"):
        source.image(1)


def test_an_evaluation_needs_no_training_split(tmp_path, datasets):
    save(datasets, tmp_path / "d", validation=make_split(datasets, [2, 1]))
    assert open_split(tmp_path / "d", "eval").labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="no split train in .*, which has validation"):
        open_split(tmp_path / "d")


def test_classes_in_another_order_are_refused(tmp_path, datasets):
    splits = {"train": make_split(datasets), "test": make_split(datasets, names=NAMES[::-1])}
    save(datasets, tmp_path / "d", **splits)
    with pytest.raises(DataError, match="have their classes in different orders: list both in one order$"):
        open_split(tmp_path / "d", "eval")


def test_a_damaged_image_is_named(tmp_path, datasets):
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    broken = datasets.Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}], "label": [0]}, features=kinds)
    save(datasets, tmp_path / "d", train=broken)
    with pytest.raises(DataError, match=r"cannot read the image .*d/train\[0\]"):
        open_split(tmp_path / "d").image(0)


MISTAKES = {
    "not saved": (lambda d, path: path.mkdir(), "is not a folder of DatasetDict.save_to_disk"),
    "damaged": (
        lambda d, path: (save(d, path, train=make_split(d)), (path / "dataset_dict.json").write_text("{")),
        "is not a folder of DatasetDict.save_to_disk",
    ),
    "one set": (lambda d, path: make_split(d).save_to_disk(str(path)), "holds one set without splits"),
    "no held-out split": (
        lambda d, path: save(d, path, train=make_split(d)),
        "no split validation or val or valid or test in .*, which has train",
    ),
    "no images": (
        lambda d, path: save(d, path, train=make_split(d), test=make_split(d, image="photo")),
        "d/test has no column of images: expected image or img as Image; it has label, photo",
    ),
    "no names": (
        lambda d, path: save(d, path, train=make_split(d), test=make_split(d, names=None)),
        "d/test has no column of labels: expected label or labels or fine_label as ClassLabel",
    ),
    "other classes": (
        lambda d, path: save(d, path, train=make_split(d), test=make_split(d, names=["ant", "bee", "cat"])),
        r"different classes: cat \(and 1 more\)",
    ),
    "a label is missing": (
        lambda d, path: save(d, path, train=make_split(d), test=make_split(d, [1, None])),
        r"d/test has no label in row 1$",
    ),
    "hidden labels": (
        lambda d, path: save(d, path, train=make_split(d), test=make_split(d, [-1, -1])),
        "d/test has no labels: .*hidden",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_wrong_folders_are_refused(tmp_path, datasets, name):
    make, message = MISTAKES[name]
    make(datasets, tmp_path / "d")
    with pytest.raises(DataError, match=message):
        open_split(tmp_path / "d", "eval")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the extra datasets: pip install 'vit-ipu\[datasets\]'$"):
        open_split(tmp_path)

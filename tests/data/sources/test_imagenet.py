"""ImageNet in its original layout and in Kaggle's."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
from helpers import data_config
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.sources import imagenet
from vit_ipu.data.sources.imagenet import is_imagenet
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError

WNIDS = ["n01440764", "n02119789", "n15075141"]
NAMES = ["tench, Tinca tinca", "kit fox, Vulpes macrotis", "toilet tissue"]
VAL = [2, 0, 1, 1]
"""The label of each held-out image."""


def image(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(str(path), "JPEG", quality=100)


def write_train(root):
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            image(root / "train" / wnid / f"{wnid}_{number}.JPEG", 80 * label)


def write_flat(root):
    write_train(root)
    for number, label in enumerate(VAL, start=1):
        image(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 80 * label)


def write_solution(root, wnids=tuple(WNIDS)):
    rows = ["ILSVRC2012_val_{:08d},{} 1 2 3 4 {} 5 6 7 8 ".format(n, *[wnids[v]] * 2) for n, v in enumerate(VAL, 1)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows[::-1]) + "\n")


ORDER = [1, 2, 0]
"""The label of ILSVRC ids 1, 2 and 3: not alphabetical."""


def write_truth(root, ids=None):
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    ids = ids or [ORDER.index(label) + 1 for label in VAL]
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in ids))
    return devkit


def write_mapping(devkit):
    lines = [f"{WNIDS[label]} {number} a_name\n" for number, label in enumerate(ORDER, start=1)]
    (devkit / "map_clsloc.txt").write_text("".join(lines))


def open_split(root, split):
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=3)
    return open_source(data_config(source="imagenet", path=str(root)), model, split)


def check(root):
    """Asserts that both splits have the right labels, and that the images belong to the labels."""
    for split, labels in (("train", [0, 0, 1, 1, 2, 2]), ("eval", VAL)):
        source = open_split(root, split)
        assert source.labels.tolist() == labels
        for index, label in enumerate(labels):
            assert abs(source.image(index).getpixel((0, 0))[0] - 80 * label) < 5


def test_class_folders_are_read(tmp_path):
    write_train(tmp_path)
    for number, label in enumerate(VAL):
        image(tmp_path / "val" / WNIDS[label] / f"{number}.JPEG", 80 * label)
    assert open_split(tmp_path, "train").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert open_split(tmp_path, "eval").labels.tolist() == sorted(VAL)
    assert open_split(tmp_path, "eval").classes == tuple(WNIDS)
    assert is_imagenet(tmp_path)


def test_kaggles_layout_is_read(tmp_path):
    write_flat(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    write_solution(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES)))
    for root in (tmp_path, tmp_path / "ILSVRC" / "Data" / "CLS-LOC"):
        check(root)
        assert open_split(root, "train").classes == tuple(NAMES)
        assert is_imagenet(root)


def test_flat_images_are_labelled_by_the_devkits_ground_truth_and_mapping(tmp_path):
    write_flat(tmp_path)
    write_mapping(write_truth(tmp_path))
    check(tmp_path)
    assert open_split(tmp_path, "train").classes == ("a name", "a name", "a name")


def test_flat_images_are_labelled_by_the_devkits_ground_truth_and_meta_file(tmp_path):
    from scipy import io as scipy_io

    write_flat(tmp_path)
    devkit = write_truth(tmp_path)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, WNIDS[label], "a name", "", 0) for number, label in enumerate(ORDER, start=1)]
    scipy_io.savemat(
        str(devkit / "meta.mat"), {"synsets": np.array([*rows, (4, "n00001740", "entity", "", 3)], fields)}
    )
    check(tmp_path)
    assert open_split(tmp_path, "train").classes == ("a name", "a name", "a name")
    (devkit / "meta.mat").write_bytes(b"no MATLAB")
    assert open_split(tmp_path, "train").classes == tuple(WNIDS)
    with pytest.raises(DataError, match=r"cannot read .*meta.mat: "):
        open_split(tmp_path, "eval")


def test_the_meta_file_without_scipy_names_the_package(tmp_path, monkeypatch):
    write_flat(tmp_path)
    (write_truth(tmp_path) / "meta.mat").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"meta.mat needs a package: pip install scipy$"):
        open_split(tmp_path, "eval")


def write_annotations(root, labels=VAL, order=None):
    """Writes the lists of mmpretrain; label k is of the class `order[k]`. Without an order there is no train.txt."""
    (root / "meta").mkdir()
    lines = [f"ILSVRC2012_val_{number:08d}.JPEG {label}\n" for number, label in enumerate(labels, start=1)]
    (root / "meta" / "val.txt").write_text("".join(lines))
    if order is not None:
        lines = [f"{WNIDS[c]}/{WNIDS[c]}_{number}.JPEG {k}\n" for k, c in enumerate(order) for number in range(2)]
        (root / "meta" / "train.txt").write_text("".join(lines))


def test_flat_images_are_labelled_by_mmpretrains_list(tmp_path):
    """Checks that labels number the sorted ids, as in the published list: `ILSVRC2012_val_00000001.JPEG 65`."""
    write_flat(tmp_path)
    write_annotations(tmp_path)
    check(tmp_path)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_list_of_training_images_tells_which_class_a_label_is(tmp_path, order):
    write_flat(tmp_path)
    write_annotations(tmp_path, [order.index(label) for label in VAL], order)
    check(tmp_path)


def test_paths_and_white_space_in_mmpretrains_list(tmp_path):
    write_flat(tmp_path)
    write_annotations(tmp_path)
    lines = (tmp_path / "meta" / "val.txt").read_text().splitlines()
    (tmp_path / "meta" / "val.txt").write_bytes(
        "\r\n".join("val/" + line.replace(" ", "\t") for line in lines).encode()
    )
    check(tmp_path)


@pytest.mark.parametrize("name", ["val.txt", "train.txt", "LOC_val_solution.csv", "truth", "map_clsloc.txt"])
def test_the_mark_that_windows_editors_put_before_a_list_is_not_text(tmp_path, name):
    write_flat(tmp_path)
    paths = {}
    if name.startswith("LOC"):
        write_solution(tmp_path)
    elif name in ("truth", "map_clsloc.txt"):
        write_mapping(write_truth(tmp_path))
        devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
        paths = {name: devkit / name, "truth": devkit / "ILSVRC2012_validation_ground_truth.txt"}
    else:
        write_annotations(tmp_path, VAL, [0, 1, 2])
        paths = {name: tmp_path / "meta" / name}
    path = paths.get(name, tmp_path / name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    check(tmp_path)


def test_the_thousand_classes_have_torchvisions_names(tmp_path, monkeypatch):
    """Checks that timm's list of classes has the checksum that this program compares."""
    from timm import data as timm_data

    wnids = timm_data.ImageNetInfo("imagenet-1k").label_names()
    assert hashlib.sha256("\n".join(wnids).encode()).hexdigest() == imagenet._ILSVRC_SHA256
    names = imagenet._class_names([tmp_path], wnids)
    assert (len(names), names[0], names[-1]) == (1000, "tench", "toilet tissue")
    assert imagenet._class_names([tmp_path], [*wnids[:-1], "n99999999"])[0] == "n01440764"
    (tmp_path / "words.txt").write_text("".join(f"{wnid}\tword {n}\n" for n, wnid in enumerate(wnids)))
    assert imagenet._class_names([tmp_path], wnids)[:2] == ["word 0", "word 1"]


def with_solution(text):
    return lambda root: (write_flat(root), (root / "LOC_val_solution.csv").write_text(text))


def with_annotations(text, training=None):
    def make(root):
        write_flat(root)
        write_annotations(root)
        (root / "meta" / "val.txt").write_text(text)
        if training is not None:
            (root / "meta" / "train.txt").write_text(training)

    return make


HEADER = "ImageId,PredictionString\n"
MISTAKES = {
    "nothing": (lambda root: None, "no folder train in"),
    "no classes": (lambda root: (root / "train").mkdir(), "no class folders in .*train: expected .*/nXXXXXXXX/"),
    "not ImageNet": (
        lambda root: (root / "train" / "cat").mkdir(parents=True),
        "cat, which is not a WordNet id .*imagefolder",
    ),
    "no held-out images": (
        lambda root: (write_train(root), (root / "val").mkdir()),
        "no images in .*val: expected .*ILSVRC2012_val_",
    ),
    "other held-out classes": (
        lambda root: (write_train(root), image(root / "val" / "n00000001" / "a.JPEG", 0)),
        r"different classes: n00000001 \(and 3 more\)",
    ),
    "flat without labels": (
        write_flat,
        "val has no class folders: put LOC_val_solution.csv or the devkit's .* or mmpretrain's meta/val.txt beside it",
    ),
    "a line of mmpretrain's list without a label": (
        with_annotations("a.JPEG 0\nb.JPEG\n"),
        "meta/val.txt line 2: 'b.JPEG' is not mmpretrain's: expected `PATH LABEL`",
    ),
    "a label of mmpretrain's list that is not a number": (
        with_annotations("a.JPEG 1_0\n"),
        "meta/val.txt line 1: 'a.JPEG 1_0' is not mmpretrain's",
    ),
    "a label beyond the classes": (
        with_annotations("a.JPEG 3\n"),
        "meta/val.txt line 1: 3 is not a label of the 3 training classes: take the list of these classes",
    ),
    "an image with two labels": (
        with_annotations("a.JPEG 0\nval/a.JPEG 1\n"),
        "meta/val.txt line 2: val/a.JPEG has another label than before: remove the wrong line",
    ),
    "a label of two classes": (
        with_annotations("a.JPEG 0\n", f"{WNIDS[0]}/a.JPEG 0\n{WNIDS[1]}/b.JPEG 0\n"),
        f"meta/train.txt line 2: the label 0 is of {WNIDS[1]}, but before of {WNIDS[0]}: correct it",
    ),
    "an image that mmpretrain's list lacks": (
        with_annotations("ILSVRC2012_val_00000001.JPEG 2\n"),
        "meta/val.txt does not list the image .*val_00000002.JPEG: complete the list",
    ),
    "not Kaggle's list": (with_solution("a,b\n"), "LOC_val_solution.csv is not Kaggle's list"),
    "not text": (
        lambda root: (write_flat(root), (root / "LOC_val_solution.csv").write_bytes(b"\xff\xfe")),
        "cannot read .*LOC_val_solution.csv",
    ),
    "an image too many": (
        with_solution(HEADER + "ILSVRC2012_val_00000001,n01440764 1 2 3 4\n"),
        "does not list the image .*val_00000002.JPEG: complete the list",
    ),
    "a class that was not trained": (
        lambda root: (write_flat(root), write_solution(root, ["n00000007"] * 3)),
        "val_00000001 the class n00000007, which has no training images: add them, or take",
    ),
    "no order of classes": (
        lambda root: (write_flat(root), write_truth(root)),
        "ground_truth.txt numbers classes in its own order: put the devkit's map_clsloc.txt",
    ),
    "damaged order of classes": (
        lambda root: (write_flat(root), (write_truth(root) / "map_clsloc.txt").write_text("1 2 3\n")),
        "map_clsloc.txt is not the devkit's",
    ),
    "ids that do not exist": (
        lambda root: (write_flat(root), write_mapping(write_truth(root, [1, 4, 1, 1]))),
        "ground_truth.txt line 2: '4' is not an ILSVRC id of the devkit: fetch it again",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_missing_and_wrong_files_are_named(tmp_path, name):
    make, message = MISTAKES[name]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_split(tmp_path, "eval")


def test_other_folders_are_not_imagenet(tmp_path):
    assert not is_imagenet(tmp_path)
    (tmp_path / "train").mkdir()
    assert not is_imagenet(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    assert not is_imagenet(tmp_path)

"""Sources of images, and errors for missing or damaged images."""

from __future__ import annotations

import gzip
import pickle

import numpy as np
import pytest
from helpers import data_config, write_image_folder
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.sources.registry import open_source
from vit_ipu.data.sources.small_sets import SAMPLE
from vit_ipu.errors import DataError

MODEL = ModelConfig(variant="vit_test", image_size=28, num_classes=10)


def test_sample_is_ten_balanced_classes_of_real_photographs():
    train, held_out = (open_source(data_config(), MODEL, split) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (9000, 1500)
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) <= 4 << 20
    assert (SAMPLE / "LICENSE").is_file()
    for source in (train, held_out):
        shares = np.bincount(source.labels, minlength=10) / len(source)
        assert (np.abs(shares - 0.1) < 0.02).all()
    assert held_out.classes[int(held_out.labels[0])] == "Ankle boot"  # Fashion-MNIST's first test image
    assert train.classes[int(train.labels[0])] == "Ankle boot"
    image = train.image(0)
    assert (image.mode, image.size) == ("RGB", (28, 28))
    pixels = np.asarray(image)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.std() > 50


def write_idx(folder, name, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    with gzip.open(folder / (name + ".gz"), "wb") as file:
        file.write(header + array.tobytes())


def test_fashion_mnist_is_read_from_its_own_files(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "FashionMNIST" / "raw"  # where torchvision puts them
    raw.mkdir(parents=True)
    images, labels = rng.integers(256, size=(7, 28, 28), dtype=np.uint8), np.arange(7, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(raw, prefix + "-images-idx3-ubyte", images)
        write_idx(raw, prefix + "-labels-idx1-ubyte", labels)
    source = open_source(data_config(source="fashion_mnist", path=str(tmp_path)), MODEL, "eval")
    assert source.labels.tolist() == list(range(7))
    assert (np.asarray(source.image(3))[..., 1] == images[3]).all()


@pytest.mark.parametrize(
    "damage",
    [b"", b"not gzip", gzip.compress(b"\0\0\x08\x03\0\0\0\x09"), gzip.compress(bytes(99))[:12] + b"\xff" * 30],
    ids=["empty", "not compressed", "header cut off", "damaged"],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not an idx file"):
        open_source(data_config(source="fashion_mnist", path=str(tmp_path)), MODEL, "train")


def test_different_numbers_of_images_and_labels_are_refused(tmp_path):
    write_idx(tmp_path, "train-images-idx3-ubyte", np.zeros((3, 28, 28), np.uint8))
    write_idx(tmp_path, "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="3 images and 2 labels"):
        open_source(data_config(source="fashion_mnist", path=str(tmp_path)), MODEL, "train")


def write_cifar(root, folder, files, names_file, names, key, num_classes):
    (root / folder).mkdir()
    rng = np.random.default_rng(1)
    for name in files:
        batch = {"data": rng.integers(256, size=(4, 3072), dtype=np.uint8), key: [0, 1, 2, num_classes - 1]}
        (root / folder / name).write_bytes(pickle.dumps(batch))
    label_key = "label_names" if num_classes == 10 else "fine_label_names"
    (root / folder / names_file).write_bytes(pickle.dumps({label_key: names}))


CIFAR = [
    (
        "cifar10",
        "CIFAR10",
        "cifar-10-batches-py",
        [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"],
        "labels",
    ),
    ("cifar100", "CIFAR100", "cifar-100-python", ["train", "test"], "fine_labels"),
]


@pytest.mark.parametrize(("source_name", "dataset", "folder", "files", "key"), CIFAR)
def test_cifar_is_read_in_torchvisions_layout(tmp_path, monkeypatch, source_name, dataset, folder, files, key):
    from torchvision import datasets

    count = int(source_name[5:])
    names = [f"name {label}" for label in range(count)]
    write_cifar(tmp_path, folder, files, "batches.meta" if count == 10 else "meta", names, key, count)
    config = data_config(source=source_name, path=str(tmp_path))
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=count)
    with pytest.raises(DataError, match=f"damaged or incomplete {dataset} in .*{folder}"):
        open_source(config, model, "train")  # the checksums are wrong: nothing is unpickled
    # these files are made up, so the published checksums are not compared from here on
    monkeypatch.setattr(getattr(datasets, dataset), "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    source = open_source(config, model, "eval")
    assert (len(source), source.classes[-1], source.image(0).size) == (4, names[-1], (32, 32))


def folder_model(num_classes=2):
    return ModelConfig(variant="vit_test", image_size=28, num_classes=num_classes)


def test_image_folder_has_sorted_classes_and_only_images(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"of another system")
    source = open_source(data_config(source="imagefolder", path=str(tmp_path)), folder_model(), "train")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.image(4).getpixel((0, 0)) == (80, 40, 7)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = str(tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png"))
    Image.new(mode, (5, 6)).save(path)
    image = open_picture(path).rgb()
    assert (image.mode, image.size) == ("RGB", (5, 6))


def test_sixteen_bits_are_scaled_and_wider_numbers_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(ramp.astype(np.uint16)).save(str(tmp_path / "sixteen.png"))
    Image.fromarray(ramp.astype(np.int32)).save(str(tmp_path / "sixteen.tif"))
    for name in ("sixteen.png", "sixteen.tif"):
        pixels = np.asarray(open_picture(str(tmp_path / name)).rgb())[..., 0]
        assert np.abs(pixels - ramp / 257).max() <= 1
    Image.fromarray((ramp * 100).astype(np.int32)).save(str(tmp_path / "wide.tif"))
    Image.fromarray((ramp / 65535).astype(np.float32)).save(str(tmp_path / "float.tif"))
    for name, message in (("wide.tif", "more than 16 bits"), ("float.tif", "pixels are floats")):
        with pytest.raises(DataError, match=message):
            open_picture(str(tmp_path / name)).rgb()


def test_odd_palettes_and_large_images_give_no_warning(tmp_path, recwarn):
    image = Image.new("P", (4, 4))
    image.save(str(tmp_path / "palette.png"), transparency=bytes([0, 128]))
    Image.new("1", (10000, 10000)).save(str(tmp_path / "large.png"))
    for name in ("palette.png", "large.png"):
        assert open_picture(str(tmp_path / name)).rgb().mode == "RGB"
    assert list(recwarn) == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read the image .*image.png"):
        open_picture(str(path)).rgb()
    with pytest.raises(DataError, match="no image at"):
        open_picture(str(tmp_path / "nowhere.png")).rgb()


@pytest.mark.parametrize(
    ("count", "label", "message"),
    [(0, 0, "holds 0 images and 0 labels"), (3, 10, "holds the label 10, but there are 10 classes")],
)
def test_idx_files_without_images_or_with_labels_beyond_the_classes_are_refused(tmp_path, count, label, message):
    write_idx(tmp_path, "train-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8))
    write_idx(tmp_path, "train-labels-idx1-ubyte", np.full(count, label, np.uint8))
    with pytest.raises(DataError, match=message):
        open_source(data_config(source="fashion_mnist", path=str(tmp_path)), MODEL, "train")


def make_cifar(root):
    (root / "cifar-10-batches-py").mkdir()


FOLDER_MISTAKES = [
    (lambda root: None, "cifar10", ".", "no CIFAR10 in .*: put the unpacked folder cifar-10-batches-py there"),
    (make_cifar, "cifar10", ".", "damaged or incomplete CIFAR10 in .*: put the complete folder cifar-10-batches-py"),
    (make_cifar, "cifar10", "cifar-10-batches-py", "damaged or incomplete CIFAR10 in .*[^y]: put the complete"),
    (lambda root: None, "imagefolder", None, "needs data.path"),
    (lambda root: None, "imagefolder", "nowhere", "is not a folder"),
    (lambda root: None, "imagefolder", ".", "no folder train in"),
    (lambda root: (root / "train").mkdir(), "imagefolder", ".", "no class folders in .*train"),
    (lambda root: (root / "train" / "cat").mkdir(parents=True), "imagefolder", ".", "no images below .*train"),
    (lambda root: write_image_folder(root, classes=("a", "b", "c")), "imagefolder", ".", "3 classes but .* is 2"),
    (lambda root: None, "cifar10", None, "needs data.path"),
    (lambda root: None, "fashion_mnist", ".", "no Fashion-MNIST in .*data.download: true"),
]


@pytest.mark.parametrize(("make", "source", "path", "message"), FOLDER_MISTAKES)
def test_errors_for_missing_images_say_where_to_put_them(tmp_path, make, source, path, message):
    make(tmp_path)
    where = None if path is None else str(tmp_path / path)
    with pytest.raises(DataError, match=message):
        open_source(data_config(source=source, path=where), folder_model(), "train")


def test_a_class_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_image_folder(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "train" / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="cannot list .*train/loop: Too many levels"):
        open_source(data_config(source="imagefolder", path=str(tmp_path)), folder_model(), "train")
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="cannot list .*train: Permission denied"):
        open_source(data_config(source="imagefolder", path=str(tmp_path)), folder_model(), "train")


def test_splits_with_different_classes_are_refused(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="different classes: bird; bird is only in val: give both the same classes$"):
        open_source(data_config(source="imagefolder", path=str(tmp_path)), folder_model(3), "eval")
    (tmp_path / "val" / "bird").rmdir()
    (tmp_path / "train" / "Dog").mkdir()
    with pytest.raises(DataError, match="different classes: Dog; Dog is only in train: give both the same classes$"):
        open_source(data_config(source="imagefolder", path=str(tmp_path)), folder_model(3), "eval")


def test_a_download_that_fails_is_reported_in_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    def refuse(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr(datasets, "CIFAR10", type("CIFAR10", (datasets.CIFAR10,), {"__init__": refuse}))
    with pytest.raises(DataError, match=r"cannot download CIFAR10 into .*: no network$"):
        open_source(data_config(source="cifar10", path=str(tmp_path), download=True), MODEL, "train")


def test_generated_images_are_random_bytes_with_random_labels_and_stay_the_same():
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=100)
    config = data_config(source="generated", num_train=2000)
    source, again = (open_source(config, model, "train") for _ in range(2))
    pixels = np.asarray(source.image(5))
    assert len(np.unique(pixels)) > 200
    assert (pixels == np.asarray(again.image(5))).all()
    assert not (pixels == np.asarray(source.image(6))).all()
    assert len(np.unique(source.labels)) == 100
    assert not (
        source.labels == open_source(data_config(source="generated", num_eval=2000), model, "eval").labels
    ).all()


def test_a_limit_keeps_every_class():
    source = open_source(data_config(num_train=200), MODEL, "train")
    assert len(source) == 200
    assert len(np.unique(source.labels)) == 10
    everything = open_source(data_config(), MODEL, "train")
    index = 3
    found = np.asarray(source.image(index))
    matching = [i for i in range(len(everything)) if (np.asarray(everything.image(i)) == found).all()]
    assert int(source.labels[index]) in {int(everything.labels[i]) for i in matching}

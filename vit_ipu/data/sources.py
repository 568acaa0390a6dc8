"""Where images come from: indexed sets of RGB images with a label each.

A source is opened for one split, "train" or "eval", and may be read in any order by many processes.
"""

from __future__ import annotations

import gzip
import lzma
import os
import pickle
import warnings
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np
from PIL import Image

from vit_ipu.config import DataConfig, ModelConfig, UserError

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train",), "eval": ("val", "validation", "test")}
SAMPLE = Path(__file__).parent / "sample"


class DataError(UserError):
    """Images that are missing or cannot be read: one line with the path and the remedy."""


class Source:
    """Images with labels, by index."""

    def __init__(self, classes: Sequence[str], labels: "np.ndarray") -> None:
        self.classes = tuple(classes)
        """The name of each label."""
        self.labels = labels
        """(n,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The RGB image at `index`, of any size."""
        raise NotImplementedError


class ArraySource(Source):
    """Images held in memory: grey (n, H, W) or colour (n, H, W, 3), uint8."""

    def __init__(self, images: "np.ndarray", labels: "np.ndarray", classes: Sequence[str]) -> None:
        super().__init__(classes, labels)
        self._images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


class FolderSource(Source):
    """Image files below one folder a class; classes and files in alphabetical order."""

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._paths: List[str] = []
        labels: List[int] = []
        for label, name in enumerate(classes):
            paths = sorted(_image_files(root / name))
            self._paths += paths
            labels += [label] * len(paths)
        if not labels:
            raise DataError("no images below {}: expected {}/CLASS/*.jpg".format(root, root))
        super().__init__(classes, np.array(labels, np.int64))

    def image(self, index: int) -> Image.Image:
        return open_image(self._paths[index])


class GeneratedSource(Source):
    """Random pixels with random labels; image `index` is the same in every process."""

    def __init__(self, num_images: int, image_size: int, num_classes: int, seed: int) -> None:
        labels = np.random.default_rng([seed, num_images]).integers(num_classes, size=num_images)
        super().__init__(["class {}".format(label) for label in range(num_classes)], labels)
        self._shape, self._seed = (image_size, image_size, 3), seed

    def image(self, index: int) -> Image.Image:
        pixels = np.random.default_rng([self._seed, index]).integers(256, size=self._shape, dtype=np.uint8)
        return Image.fromarray(pixels)


class LimitedSource(Source):
    """The first images of another source after a fixed shuffle, so that every class is there."""

    def __init__(self, source: Source, num_images: int) -> None:
        self._source = source
        self._kept = np.random.default_rng(0).permutation(len(source))[:num_images]
        super().__init__(source.classes, source.labels[self._kept])

    def image(self, index: int) -> Image.Image:
        return self._source.image(int(self._kept[index]))


def open_source(config: DataConfig, model: ModelConfig, split: str) -> Source:
    """The images of `split` ("train" or "eval"). Raises DataError if they are missing or cannot be read."""
    source = _OPEN[config.source](config, model, split)
    limit = config.num_train if split == "train" else config.num_eval
    if limit is not None and limit < len(source):
        source = LimitedSource(source, limit)
    if len(source.classes) != model.num_classes:
        raise DataError(
            "data.path {} has {} classes but model.num_classes is {}: set model.num_classes: {}".format(
                config.path, len(source.classes), model.num_classes, len(source.classes)
            )
        )
    return source


def open_image(path: str) -> Image.Image:
    """The file at `path` as an RGB image. Raises DataError if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, on sizes and odd palettes
            with Image.open(path) as image:
                return _to_rgb(image)
    except FileNotFoundError:
        raise DataError("no image at {}".format(path)) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("cannot read the image {}: {}".format(path, str(error).splitlines()[0])) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode; 16 bits are scaled, transparency is dropped. Raises ValueError for wider numbers."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits: save it with 8 or 16")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats: save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


# ------------------------------------------------------------------------------------- the sources


def _open_sample(config: DataConfig, model: ModelConfig, split: str) -> Source:
    return _fashion_mnist(SAMPLE, split)


def _open_fashion_mnist(config: DataConfig, model: ModelConfig, split: str) -> Source:
    root = _path(config)
    if config.download:
        _download("FashionMNIST", root)
    for folder in (root, root / "FashionMNIST" / "raw"):
        if any((folder / (_IDX[split][0] + suffix)).is_file() for suffix in _DECOMPRESS):
            return _fashion_mnist(folder, split)
    raise DataError(
        "no Fashion-MNIST in {}: put {}.gz and the other three idx files there, or set data.download: true".format(
            root, _IDX[split][0]
        )
    )


def _open_cifar(config: DataConfig, model: ModelConfig, split: str) -> Source:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    root = _path(config)
    if config.download:
        _download(dataset.__name__, root)
    try:
        images = dataset(str(root), train=split == "train")  # checks every file's MD5 before it is unpickled
    except (RuntimeError, OSError, pickle.UnpicklingError):
        raise DataError(
            "no {} in {}: put the folder {} there, or set data.download: true".format(
                dataset.__name__, root, dataset.base_folder
            )
        ) from None
    return ArraySource(images.data, np.array(images.targets, np.int64), images.classes)


def _open_imagefolder(config: DataConfig, model: ModelConfig, split: str) -> Source:
    root = _path(config)
    folder = _split_folder(root, split)
    classes = _class_folders(folder)
    if not classes:
        raise DataError("no class folders in {}: expected {}/CLASS/*.jpg".format(folder, folder))
    if split == "eval":
        trained = _class_folders(_split_folder(root, "train"))
        if trained != classes:
            differing = sorted(set(trained) ^ set(classes))
            raise DataError(
                "{} and its train folder have different classes: {} and {} more".format(
                    folder, differing[0], len(differing) - 1
                )
            )
    return FolderSource(folder, classes)


def _open_generated(config: DataConfig, model: ModelConfig, split: str) -> Source:
    count = (config.num_train if split == "train" else config.num_eval) or 1024
    return GeneratedSource(count, model.image_size, model.num_classes, seed=0 if split == "train" else 1)


_OPEN: Dict[str, Callable[[DataConfig, ModelConfig, str], Source]] = {
    "sample": _open_sample,
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "imagefolder": _open_imagefolder,
    "generated": _open_generated,
}


def _path(config: DataConfig) -> Path:
    if config.path is None:
        raise DataError("data.source {} needs data.path, the folder of the images".format(config.source))
    path = Path(config.path).expanduser()
    if not config.download and not path.is_dir():
        raise DataError("data.path {} is not a folder".format(path))
    return path


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib, ssl and torchvision raise many kinds
        raise DataError("cannot download {} into {}: {}".format(name, root, str(error).splitlines()[0])) from None


# ------------------------------------------------------------------------------- files and folders

_IDX: Dict[str, Tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "eval": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DECOMPRESS: Dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
    "": lambda raw: raw,
}


def _fashion_mnist(folder: Path, split: str) -> Source:
    images, labels = (_read_idx(folder, name) for name in _IDX[split])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            "{} holds {} images and {} labels: fetch the files again".format(folder, len(images), len(labels))
        )
    return ArraySource(images, labels.astype(np.int64), FASHION_CLASSES)


def _read_idx(folder: Path, name: str) -> "np.ndarray":
    """An idx file of bytes (http://yann.lecun.com/exdb/mnist), plain or compressed."""
    for suffix, decompress in _DECOMPRESS.items():
        path = folder / (name + suffix)
        if not path.is_file():
            continue
        try:
            raw = decompress(path.read_bytes())
            shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape([int(n) for n in shape])
        except (OSError, EOFError, ValueError, IndexError, lzma.LZMAError) as error:
            raise DataError("{} is not an idx file: {}".format(path, error)) from None
    raise DataError("no {}.gz in {}".format(name, folder))


def _split_folder(root: Path, split: str) -> Path:
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise DataError("no folder {} in {}".format(" or ".join(SPLIT_FOLDERS[split]), root))


def _class_folders(folder: Path) -> List[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def _image_files(folder: Path) -> List[str]:
    return [entry.path for entry in _entries(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES)]


def _entries(folder: Path) -> "List[os.DirEntry[str]]":
    """What is in a folder, without hidden files."""
    try:
        return [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError("cannot list {}: {}".format(folder, error.strerror)) from None

"""Where images come from: indexed sets of RGB images with a label each.

A source is opened for one split, "train" or "eval", and may be read in any order by many processes.
What a source is, is in base.py; folders of files are in folders.py, tar shards in shards.py.
"""

from __future__ import annotations

import gzip
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from vit_ipu.config import DataConfig, ModelConfig
from vit_ipu.data.images.decode import DataError, Picture
from vit_ipu.data.sources.base import Source, expanded, open_picture
from vit_ipu.data.sources.folders import open_folders, open_imagenet
from vit_ipu.data.sources.hugging_face import open_saved
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shards import open_shards

__all__ = ["DataError", "Source", "open_picture", "open_source"]

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
SAMPLE = Path(__file__).parents[1] / "sample"


class ArraySource(Source):
    """Images held in memory: grey (n, H, W) or colour (n, H, W, 3), uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
        super().__init__(classes, labels)
        self._images = images

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


class GeneratedSource(Source):
    """Random pixels with random labels; image `index` is the same in every process."""

    def __init__(self, num_images: int, image_size: int, num_classes: int, seed: int) -> None:
        labels = np.random.default_rng([seed, num_images]).integers(num_classes, size=num_images)
        super().__init__([f"class {label}" for label in range(num_classes)], labels)
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

    def picture(self, index: int) -> Picture:
        return self._source.picture(int(self._kept[index]))


def open_source(config: DataConfig, model: ModelConfig, split: str, *, cache: Optional[ListingCache] = None) -> Source:
    """The images of `split` ("train" or "eval"). Raises DataError if they are missing or cannot be read."""
    source = _OPEN[config.source](config, model, split, cache or ListingCache())
    limit = config.num_train if split == "train" else config.num_eval
    if limit is not None and limit < len(source):
        source = LimitedSource(source, limit)
    if len(source.classes) != model.num_classes:
        raise DataError(
            f"data.path {config.path} has {len(source.classes)} classes but model.num_classes is {model.num_classes}: "
            f"set model.num_classes: {len(source.classes)}"
        )
    return source


# ------------------------------------------------------------------------------------- the sources


def _open_sample(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    return _fashion_mnist(SAMPLE, split)


def _open_fashion_mnist(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    root = _path(config)
    if config.download:
        _download("FashionMNIST", root)
    for folder in (root, root / "FashionMNIST" / "raw"):
        if any((folder / (_IDX[split][0] + suffix)).is_file() for suffix in _DECOMPRESS):
            return _fashion_mnist(folder, split)
    raise DataError(
        f"no Fashion-MNIST in {root}: put {_IDX[split][0]}.gz and the other three idx files there, or set "
        "data.download: true"
    )


def _open_cifar(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.source]
    root = _path(config)
    if config.download:
        _download(dataset.__name__, root)
    root = root.parent if root.name == dataset.base_folder else root
    try:
        images = dataset(str(root), train=split == "train")  # checks every file's MD5 before it is unpickled
    except (RuntimeError, OSError, pickle.UnpicklingError):
        is_there = (root / dataset.base_folder).is_dir()
        raise DataError(
            "{} {} in {}: put the {} folder {} there, or set data.download: true".format(
                "damaged or incomplete" if is_there else "no",
                dataset.__name__,
                root,
                "whole" if is_there else "unpacked",
                dataset.base_folder,
            )
        ) from None
    return ArraySource(images.data, np.array(images.targets, np.int64), images.classes)


def _open_imagefolder(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    return open_folders(_path(config), split, cache)


def _open_imagenet(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    return open_imagenet(_path(config), split, cache)


def _open_shards(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    _named_path(config)
    return open_shards(config, model.num_classes, split, cache)


def _open_huggingface(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    return open_saved(_path(config), split)


def _open_generated(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    count = (config.num_train if split == "train" else config.num_eval) or 1024
    return GeneratedSource(count, model.image_size, model.num_classes, seed=0 if split == "train" else 1)


_OPEN: Dict[str, Callable[[DataConfig, ModelConfig, str, ListingCache], Source]] = {
    "sample": _open_sample,
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": _open_cifar,
    "cifar100": _open_cifar,
    "imagefolder": _open_imagefolder,
    "imagenet": _open_imagenet,
    "shards": _open_shards,
    "huggingface": _open_huggingface,
    "generated": _open_generated,
}


def _named_path(config: DataConfig) -> str:
    if config.path is None:
        raise DataError(f"data.source {config.source} needs data.path, the folder of the images")
    return config.path


def _path(config: DataConfig) -> Path:
    path = expanded(_named_path(config))
    if not config.download and not path.is_dir():
        raise DataError(f"data.path {path} is not a folder")
    return path


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib, ssl and torchvision raise many kinds
        raise DataError(f"cannot download {name} into {root}: {str(error).splitlines()[0]}") from None


# -------------------------------------------------------------------------------------- idx files

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
    if images.ndim != 3 or labels.shape != images.shape[:1] or len(images) == 0:
        raise DataError(f"{folder} holds {len(images)} images and {len(labels)} labels: fetch the files again")
    if labels.max() >= len(FASHION_CLASSES):
        raise DataError(
            f"{folder} holds the label {labels.max()}, but there are {len(FASHION_CLASSES)} classes: fetch the files "
            "again"
        )
    return ArraySource(images, labels.astype(np.int64), FASHION_CLASSES)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An idx file of bytes (http://yann.lecun.com/exdb/mnist), plain or compressed."""
    for suffix, decompress in _DECOMPRESS.items():
        path = folder / (name + suffix)
        if not path.is_file():
            continue
        try:
            raw = decompress(path.read_bytes())
            shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape([int(n) for n in shape])
        except (OSError, EOFError, ValueError, IndexError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} is not an idx file: {error}") from None
    raise DataError(f"no {name}.gz in {folder}")

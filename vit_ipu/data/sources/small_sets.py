"""Small data sets held in memory: the sample in the package, Fashion-MNIST, CIFAR, and generated images."""

from __future__ import annotations

import gzip
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Sequence, Tuple

import numpy as np
from PIL import Image

from vit_ipu.data.sources.base import Source
from vit_ipu.errors import DataError
from vit_ipu.small_files import open_regular
from vit_ipu.text import counted

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


def open_sample(split: str) -> Source:
    """Opens the sample of Fashion-MNIST that the package contains."""
    return _read_fashion_mnist(SAMPLE, split)


def open_fashion_mnist(root: Path, split: str, *, download: bool) -> Source:
    """Opens Fashion-MNIST in `root`, as its idx files or as torchvision lays them out."""
    if download:
        _download("FashionMNIST", root)
    for folder in (root, root / "FashionMNIST" / "raw"):
        if any((folder / (_IDX[split][0] + suffix)).is_file() for suffix in _DECOMPRESS):
            return _read_fashion_mnist(folder, split)
    raise DataError(
        f"no Fashion-MNIST in {root}: put {_IDX[split][0]}.gz and the other three idx files there, or set "
        "data.download: true"
    )


def open_cifar(name: str, root: Path, split: str, *, download: bool) -> Source:
    """Opens "cifar10" or "cifar100" in `root`, as its python files or as torchvision lays them out."""
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    for folder in (root, root / dataset.base_folder):
        for file_name, *_ in (*dataset.train_list, *dataset.test_list, [dataset.meta["filename"]]):
            _require_cifar_size(folder / file_name)
    if download:
        _require_cifar_size(root / dataset.filename)
        _download(dataset.__name__, root)
    root = root.parent if root.name == dataset.base_folder else root
    try:
        images = dataset(str(root), train=split == "train")  # checks every file's MD5 before it is unpickled
    except (RuntimeError, OSError, pickle.UnpicklingError):
        folder = dataset.base_folder
        problem = (
            f"damaged or incomplete {dataset.__name__} in {root}: put the complete folder {folder} there"
            if (root / folder).is_dir()
            else f"no {dataset.__name__} in {root}: put the unpacked folder {folder} there"
        )
        raise DataError(f"{problem}, or set data.download: true") from None
    return ArraySource(images.data, np.array(images.targets, np.int64), images.classes)


def _require_cifar_size(path: Path) -> None:
    """Raises DataError if a file is larger than any of CIFAR; torchvision would hash it first."""
    size = path.stat().st_size if path.is_file() else 0
    if size > _MAX_CIFAR_BYTES:
        raise DataError(
            f"{path} is not a file of CIFAR: it has {size:,} bytes, and the largest has {_MAX_CIFAR_BYTES:,}; put the "
            "right file there"
        )


def _download(name: str, root: Path) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(root), download=True)
    except Exception as error:  # urllib, ssl and torchvision raise many kinds
        raise DataError(f"cannot download {name} into {root}: {str(error).splitlines()[0]}") from None


_MAX_CIFAR_BYTES = 170_498_071
"""Bytes of cifar-10-python.tar.gz, the largest file of CIFAR-10 and CIFAR-100."""
_IDX: Dict[str, Tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "eval": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MAX_IDX_BYTES = 64 << 20
"""Bytes of an unpacked idx file; the largest of Fashion-MNIST has 47,040,016."""
_DECOMPRESS: Dict[str, Callable[[BinaryIO], Any]] = {
    ".xz": lzma.LZMAFile,
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    "": lambda file: file,
}


def _read_fashion_mnist(folder: Path, split: str) -> Source:
    images, labels = (_read_idx(folder, name) for name in _IDX[split])
    if images.ndim != 3 or labels.shape != images.shape[:1] or len(images) == 0:
        raise DataError(
            f"{folder} holds {counted(len(images), 'image')} and {counted(len(labels), 'label')}: fetch the files again"
        )
    if labels.max() >= len(FASHION_CLASSES):
        raise DataError(
            f"{folder} holds the label {labels.max()}, but there are {len(FASHION_CLASSES)} classes: fetch the files "
            "again"
        )
    return ArraySource(images, labels.astype(np.int64), FASHION_CLASSES)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads an idx file of bytes (http://yann.lecun.com/exdb/mnist), plain or compressed."""
    for suffix, decompress in _DECOMPRESS.items():
        path = folder / (name + suffix)
        if not path.is_file():
            continue
        try:
            with open_regular(path) as file:
                raw = decompress(file).read(_MAX_IDX_BYTES + 1)
            if len(raw) > _MAX_IDX_BYTES:
                raise ValueError(f"it has more than {_MAX_IDX_BYTES:,} bytes")
            shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape([int(n) for n in shape])
        except (OSError, EOFError, ValueError, IndexError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} is not an idx file: {error}") from None
    raise DataError(f"no {name}.gz in {folder}")

"""Opens the source that a config names, for one split: "train" or "eval"."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Optional

import numpy as np
from PIL import Image

from vit_ipu.class_balance import count_images
from vit_ipu.config import DataConfig, ModelConfig
from vit_ipu.data.images.decode import Picture
from vit_ipu.data.sources.base import EncodedSource, Source
from vit_ipu.data.sources.dark_images import note_dark_images
from vit_ipu.data.sources.folders import open_folders
from vit_ipu.data.sources.held_out_classes import note_classes_without_images
from vit_ipu.data.sources.holdout import held_out_labels
from vit_ipu.data.sources.hugging_face import open_saved
from vit_ipu.data.sources.imagenet import open_imagenet
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.shards import open_shards, require_shard_folder
from vit_ipu.data.sources.small_sets import GeneratedSource, open_cifar, open_fashion_mnist, open_sample
from vit_ipu.data.sources.transparent_images import note_transparency
from vit_ipu.errors import DataError
from vit_ipu.files import expand_home
from vit_ipu.text import counted


class PartOfSource(Source):
    """Some of the images of another source."""

    def __init__(self, source: Source, kept: np.ndarray) -> None:
        """`kept` (n,) holds the indices of the images."""
        self._source = source
        self._kept = kept
        super().__init__(source.classes, source.labels[kept])

    def name(self, index: int) -> str:
        return self._source.name(int(self._kept[index]))

    def image(self, index: int) -> Image.Image:
        return self._source.image(int(self._kept[index]))

    def picture(self, index: int) -> Picture:
        return self._source.picture(int(self._kept[index]))


def open_source(config: DataConfig, model: ModelConfig, split: str, *, cache: Optional[ListingCache] = None) -> Source:
    """Opens the images of `split` ("train" or "eval"). Raises DataError if images are missing or cannot be read."""
    cache = cache or ListingCache()
    divides_training = config.holdout is not None and config.source != "imagefolder"
    source = _open(config, model, "train" if divides_training else split, cache)
    if isinstance(source, EncodedSource):
        source.background = config.background_rgb
        note_dark_images(source, cache.notify)
        if split == "train" and config.background is None:
            note_transparency(source, cache.notify, remedy="data.background: white lays them on white")
    if divides_training:
        source = _divided(source, split, config)
    if split == "eval" and config.source != "generated":
        note_classes_without_images(source, cache.notify)
    limit = config.num_train if split == "train" else config.num_eval
    if limit is not None and limit < len(source):  # a fixed shuffle, so that all classes occur
        source = PartOfSource(source, np.random.default_rng(0).permutation(len(source))[:limit])
    if len(source.classes) != model.num_classes:
        raise DataError(
            f"data.path {config.path} has {counted(len(source.classes), 'class', 'classes')} but model.num_classes is "
            f"{model.num_classes}: set model.num_classes: {len(source.classes)}"
        )
    if split == "train" and config.sampling == "balanced":
        count_images(source.labels, source.classes, wanted_by="data.sampling: balanced")
    return source


def require_images_at(config: DataConfig) -> None:
    """Raises DataError if `data.path` is needed and is missing, or does not exist; looks into no folder."""
    if config.source == "shards":
        require_shard_folder(_named_path(config), config)
    elif config.source not in ("sample", "generated"):
        _path(config)


def _open(config: DataConfig, model: ModelConfig, split: str, cache: ListingCache) -> Source:
    openers: Dict[str, Callable[[], Source]] = {
        "sample": lambda: open_sample(split),
        "fashion_mnist": lambda: open_fashion_mnist(_path(config), split, download=config.download),
        "cifar10": lambda: open_cifar("cifar10", _path(config), split, download=config.download),
        "cifar100": lambda: open_cifar("cifar100", _path(config), split, download=config.download),
        "imagefolder": lambda: open_folders(_path(config), split, cache, config.holdout),
        "imagenet": lambda: open_imagenet(_path(config), split, cache),
        "shards": lambda: open_shards(_named_path(config), config, model.num_classes, split, cache),
        "huggingface": lambda: open_saved(_path(config), split),
        "generated": lambda: _open_generated(config, model, split),
    }
    return openers[config.source]()


def _divided(source: Source, split: str, config: DataConfig) -> Source:
    """Returns the training images of a source without those that data.holdout holds out, or these alone."""
    assert config.holdout is not None
    chosen = held_out_labels(source.labels, config.holdout)
    if not chosen.any():
        raise DataError(
            f"data.holdout {config.holdout}: every class of data.source {config.source} has one training image, so "
            "none can be held out: add images, or remove data.holdout"
        )
    return PartOfSource(source, np.flatnonzero(chosen if split == "eval" else ~chosen))


def _open_generated(config: DataConfig, model: ModelConfig, split: str) -> Source:
    count = (config.num_train if split == "train" else config.num_eval) or 1024
    return GeneratedSource(count, model.image_size, model.num_classes, seed=0 if split == "train" else 1)


def _named_path(config: DataConfig) -> str:
    if config.path is None:
        raise DataError(f"data.source {config.source} needs data.path, the folder of the images")
    return config.path


def _path(config: DataConfig) -> Path:
    path = expand_home(_named_path(config))
    if not config.download and not path.is_dir():
        raise DataError(f"data.path: {path} is not a folder; give the folder of the images")
    return path

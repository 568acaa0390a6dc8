"""A small folder of images, packed."""

from __future__ import annotations

from helpers import data_config
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source

CLASSES = ("ant", "bee")


def write_two_classes(root):
    """Writes two classes of three images in each of two splits, and returns the folder."""
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                write_image(root / split / name / f"{number}.png", 10 * label + number)
    return root


def write_image(path, shade):
    Image.new("RGB", (9, 7), (shade, 0, 0)).save(str(path))


def run_pack(root, target, *, rescan=False, **options):
    chosen = PackOptions(**{"shard_size": 4_000, **options})
    return pack(root, target, chosen, workers=1, cache=ListingCache(rescan=rescan))


def packed_shades(target):
    config = data_config(source="shards", path=str(target))
    source = open_source(config, ModelConfig(variant="vit_test", image_size=28, num_classes=2), "train")
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]

"""Small tar shards for tests."""

from __future__ import annotations

import io
import tarfile

from helpers import data_config
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.sources.registry import open_source


def png(shade, mode="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (shade, 0, 0)).save(file, mode)
    return file.getvalue()


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(str(path), "w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def samples(labels, start=0):
    """Returns two members per sample: an image whose shade is the sample's position, and the label."""
    return [
        part
        for place, label in enumerate(labels, start=start)
        for part in (
            (f"{place:04d}.png", png(place)),
            (f"{place:04d}.cls", str(label).encode()),
        )
    ]


LABELS = [2, 0, 1, 1, 0, 2, 1]


def write_shards(root, format=tarfile.USTAR_FORMAT):
    """Writes seven training images in three shards, and two held-out images in one shard."""
    for number, (first, last) in enumerate(((0, 3), (3, 4), (4, 7))):
        write_tar(root / "train" / f"x-{number:02d}.tar", samples(LABELS[first:last], first), format)
    write_tar(root / "val" / "x-00.tar", samples([1, 2]), format)


def open_split(path, split="train", num_classes=3, **data):
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=num_classes)
    return open_source(data_config(source="shards", path=str(path), **data), model, split)


def shades(source, order=None):
    return [source.image(index).getpixel((0, 0))[0] for index in (range(len(source)) if order is None else order)]

"""A folder of random JPEGs with odd names, packed by several processes."""

from __future__ import annotations

import io

import numpy as np
from helpers import data_config
from PIL import Image

from vit_ipu.config import ModelConfig
from vit_ipu.data.packing.jobs import PackOptions
from vit_ipu.data.packing.pack import pack
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source

ODD = ["a.b.c.JPEG", "ä ö.jpg", "-x;'\"*.jpeg", "n" * 200 + ".jpg", "_.jpg", "\udcff.jpg"]


def write_images(root, count=12, size=(40, 30)):
    """Writes random JPEGs of two classes with odd names, and one PNG; returns the folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog.v2"):
            folder = root / split / name
            folder.mkdir(parents=True)
            names = [*ODD, *(f"{number}.jpg" for number in range(count - len(ODD)))]
            for file in names:
                pixels = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "JPEG", quality=95)
                (folder / file).write_bytes(encoded.getvalue())
    Image.new("RGBA", (50, 60), (1, 2, 3, 4)).save(str(root / "train" / "cat" / "z.PNG"))
    return root


def run_pack(source, target, workers=2, **options):
    return pack(source, target, PackOptions(**{"shard_size": 20_000, **options}), workers=workers, cache=ListingCache())


def open_split(kind, path, split):
    model = ModelConfig(variant="vit_test", image_size=28, num_classes=2)
    return open_source(data_config(source=kind, path=str(path)), model, split)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

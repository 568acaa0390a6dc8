"""Photographs to decode and crop, and the same crops made by Pillow and torchvision."""

from __future__ import annotations

import io
import os
import runpy
import struct
import zlib
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageOps

BENCHMARKS = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "photographs.py"))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PHOTOGRAPH = os.path.join(os.path.dirname(matplotlib.__file__), "mpl-data", "sample_data", "grace_hopper.jpg")


def photograph(size=(500, 375)):
    """Returns a random part of a portrait in front of a flag."""
    rng = np.random.default_rng(0)
    with Image.open(PHOTOGRAPH) as image:
        width = rng.uniform(0.4, 1) * min(image.width, image.height * size[0] / size[1])
        height = width * size[1] / size[0]
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_chunks(width, height, bits, color_type, *chunks):
    """Returns a PNG of a header and the chunks, each a name and a content; `color_type` is the number in the header."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks)
    checked = ((name + content, len(content)) for name, content in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk, length in checked
    )


def pillows_crop(image, box, size, interpolation):
    return np.asarray(image.resize((size, size), FILTERS[interpolation], box=box))


def upright_by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def assert_alike(found, expected):
    """Asserts that a crop is close to Pillow's full decode and antialiased resize."""
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() <= 2
    assert np.percentile(difference, 99) <= 12


def photographs(count):
    """Returns JPEGs of 500 x 375 pixels: parts of the benchmarks' seven photographs, encoded in various qualities."""
    originals, rng = BENCHMARKS["photographs"](), np.random.default_rng(0)
    return [encoded(BENCHMARKS["crop"](originals, rng), quality=int(rng.integers(75, 96))) for _ in range(count)]


def large_photograph(size):
    """Returns photographs side by side, with as many details as one photograph of that size would have."""
    originals, rng = BENCHMARKS["photographs"](), np.random.default_rng(0)
    canvas = Image.new("RGB", size)
    for top in range(0, size[1], 300):
        for left in range(0, size[0], 400):
            tile = originals[int(rng.integers(len(originals)))]
            canvas.paste(tile if rng.random() < 0.5 else ImageOps.mirror(tile), (left, top))
    return canvas


def torchvisions_middle(image, short_side, size, interpolation):
    from torchvision.transforms import functional as TF

    mode = TF.InterpolationMode(interpolation)
    return np.asarray(TF.center_crop(TF.resize(image, short_side, mode), [size, size]))

"""Creates real-size JPEGs to measure loading: crops of scikit-image's and matplotlib's photographs, encoded again.

The JPEGs have 500 x 375 pixels, quality 90, halved chroma and about 45 KB each. A folder of them has classes, as
ImageNet's has.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import List

import matplotlib
import numpy as np
from PIL import Image

SIZE = (500, 375)
QUALITY = 90
_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "motorcycle_left.png")


def photographs() -> List[Image.Image]:
    """Returns the original photographs, in colour. Raises ImportError without scikit-image."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    paths = [folder / name for name in _PHOTOGRAPHS]
    paths.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return [Image.open(path).convert("RGB") for path in paths]


def crop(originals: List[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Returns a random part of a random photograph, resized to SIZE.

    The part is at least half as large as SIZE, so that an enlarged part still looks like a photograph.
    """
    image = originals[int(rng.integers(len(originals)))]
    width, height = SIZE
    largest = min(image.width / width, image.height / height)
    factor = largest * rng.uniform(0.6, 1.0)
    w, h = width * factor, height * factor
    left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
    return image.resize(SIZE, Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))


def encoded(image: Image.Image, quality: int = QUALITY) -> bytes:
    """Encodes the image as a JPEG with halved chroma."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def write_folder(root: Path, num_images: int, num_classes: int = 10) -> None:
    """Writes root/train and root/val, each with `num_images` photographs in class folders."""
    originals, rng = photographs(), np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(num_images):
            folder = root / split / f"class_{index % num_classes:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:05d}.jpg").write_bytes(encoded(crop(originals, rng)))

"""Makes image folders of openclipart's drawings in ten classes, for finetune_proof.py.

    python benchmarks/drawings.py data/drawings --packages data/packages
    vit-ipu pack data/drawings data/drawings_shards

The Debian package openclipart-png is fetched into PACKAGES by `apt-get download` and unpacked there. Its drawings are
in the public domain. Classes are folders of the package, whose labels are noisy: its contributors chose the folders.
Pictures have 224 x 224 pixels, in colour on white. A fifth of each class is in val/, chosen by data.holdout's rule, and
the rest in train/. Drawings of a series may be in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Optional

import numpy as np
from command import run_command
from made_up_classes import parse_folders, unpacked
from PIL import Image

from vit_ipu.data.sources.holdout import held_out_labels

CLASSES = (
    "animals", "computer", "food", "geography", "office", "people", "recreation", "signs_and_symbols", "tools",
    "transportation",
)  # fmt: skip
SIDE = 224
MOST = 350
"""Pictures of a class."""
HELD_OUT = 0.2
_LARGEST = 20_000_000
"""Pixels of a drawing; larger ones are left out."""
_FEWEST_TONES = 8.0
"""Standard deviation of a picture below which it is nearly empty."""


def main() -> None:
    arguments = parse_folders(__doc__)
    Image.MAX_IMAGE_PIXELS = None  # sizes are looked at before an image is decoded
    root = unpacked(arguments.packages, ("openclipart-png",)) / "usr/share/openclipart/png"
    for name in CLASSES:
        counts = write(list(pictures(root / name)), arguments.folder, name)
        print(f"{name}: {counts[0]} in train, {counts[1]} in val")


def pictures(folder: Path) -> Iterator[Image.Image]:
    """Yields up to MOST pictures of a class, chosen by a fixed shuffle; links repeat other drawings."""
    paths = sorted(path for path in folder.rglob("*.png") if not path.is_symlink())
    made = 0
    for index in np.random.default_rng(0).permutation(len(paths)):
        picture = drawn(paths[index]) if made < MOST else None
        if picture is not None:
            made += 1
            yield picture


def drawn(path: Path) -> Optional[Image.Image]:
    """Returns a drawing on white, (SIDE, SIDE) RGB; None if it is too large or nearly empty."""
    with Image.open(path) as image:
        if image.width * image.height > _LARGEST:
            return None
        drawing = image.convert("RGBA")
    drawing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    picture.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2), drawing)
    return picture if np.asarray(picture).std() >= _FEWEST_TONES else None


def write(images: List[Image.Image], folder: Path, name: str) -> List[int]:
    """Writes the pictures of a class as PNG, and returns how many are in train and in val."""
    held_out = held_out_labels(np.zeros(len(images), np.int64), HELD_OUT)
    for number, (image, is_held_out) in enumerate(zip(images, held_out)):
        place = folder / ("val" if is_held_out else "train") / name
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:03d}.png", optimize=True)
    return [int((~held_out).sum()), int(held_out.sum())]


if __name__ == "__main__":
    run_command(main)

"""Makes an image folder of glyphs, pictographs and drawings from Debian packages, to pre-train the quickstart's ViT.

    python benchmarks/made_up_classes.py data/made_up_classes --packages data/packages
    vit-ipu train pipeline_configs/quickstart_pretrain.yaml --device cuda

The packages are fetched into PACKAGES by `apt-get download` and unpacked there. Classes are made up: each letter that
many fonts have is a class of its pictures in different fonts; each pictograph of a symbol font and each drawing of
openclipart is a class by itself, whose variety comes from augmentation. Pictures have 40 x 40 grey pixels, bright on
black. Nothing of Fashion-MNIST is used. The fonts and drawings are free: openclipart is in the public domain, the fonts
have the licences in /usr/share/doc of their packages.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
from command import run_command
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

PACKAGES = (
    "openclipart-png", "fonts-cantarell", "fonts-comfortaa", "fonts-courier-prime", "fonts-crosextra-caladea",
    "fonts-crosextra-carlito", "fonts-dejavu-extra", "fonts-firacode", "fonts-font-awesome", "fonts-freefont-ttf",
    "fonts-gfs-didot", "fonts-hack", "fonts-inconsolata", "fonts-lato", "fonts-liberation", "fonts-linuxlibertine",
    "fonts-noto-color-emoji", "fonts-noto-core", "fonts-open-sans", "fonts-play", "fonts-quicksand",
    "fonts-roboto-unhinted", "fonts-sil-gentium", "fonts-symbola",
)  # fmt: skip
SIDE, MARGIN = 40, 1
"""Pixels of a picture, and of its black border."""
NUM_LETTERS, FEWEST_FONTS, SHARE_OF_FONTS = 400, 60, 0.35
"""Letters, the fonts that must have one, and the share of its fonts that is drawn."""
_LARGEST_DRAWING = 20_000_000
"""Pixels of a drawing; larger ones are left out."""
_FEWEST_TONES = 20.0
"""Standard deviation of a picture below which it is nearly empty."""
_EMOJI_SIZE = 109
"""The only size of the colour emoji font."""


def main() -> None:
    arguments = parse_folders(__doc__)
    root = unpacked(arguments.packages)
    fonts = list(fonts_in(root))
    count = 0
    for kind, pictures in (("letter", letters(fonts)), ("sign", signs(fonts)), ("drawing", drawings(root))):
        classes: Set[str] = set()
        for label, picture in pictures:
            name = f"{kind}_{label}"
            write(picture, arguments.folder, name, first=name not in classes)
            classes.add(name)
            count += 1
        print(f"{kind}: {len(classes):,} classes")
    print(f"{count:,} pictures in {arguments.folder}")


def parse_folders(description: str) -> argparse.Namespace:
    """Returns the arguments of a program that makes a `folder` of pictures from `packages`; ends it if it exists."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"))
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"{arguments.folder} exists: give the path of a new folder")
    return arguments


def unpacked(folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Fetches and unpacks the packages that are not there yet, and returns the folder of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    for package in packages:
        if not any(folder.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
            subprocess.run(["dpkg", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(root)], check=True)
    return root


def write(picture: np.ndarray, folder: Path, name: str, *, first: bool) -> None:
    """Writes a training image; the first of a class is held out too, to show that the model learns."""
    for split in ("train", "val") if first else ("train",):
        place = folder / split / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{len(list(place.iterdir())):03d}.png")


Font = Tuple[Path, Dict[int, str]]
"""The path of a font, and the names of its glyphs by code point."""


def fonts_in(root: Path) -> Iterator[Font]:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".ttf", ".otf"):
            try:
                yield path, TTFont(path, lazy=True).getBestCmap() or {}
            except (TTLibError, OSError):
                continue


def letters(fonts: List[Font]) -> Iterator[Tuple[str, np.ndarray]]:
    """Yields pictures of the most frequent letters, digits and signs in many fonts."""
    counted = collections.Counter(code for path, codes in fonts if not _is_emoji(path) for code in codes)
    chosen = [
        code
        for code, count in counted.most_common()
        if count >= FEWEST_FONTS and unicodedata.category(chr(code))[0] in "LNS"
    ][:NUM_LETTERS]
    rng = np.random.default_rng(0)
    for path, codes in fonts:
        if _is_emoji(path):
            continue
        font = ImageFont.truetype(str(path), 96)
        for code in chosen:
            if code in codes and rng.random() < SHARE_OF_FONTS:
                yield from _drawn(f"{code:05x}", font, code)


def signs(fonts: List[Font]) -> Iterator[Tuple[str, np.ndarray]]:
    """Yields pictures of the pictographs of symbol fonts."""
    for path, codes in fonts:
        if _is_emoji(path) or "symbola" in path.name.lower() or "awesome" in path.name.lower():
            font = ImageFont.truetype(str(path), _EMOJI_SIZE if _is_emoji(path) else 96)
            for code in sorted(codes):
                if _is_pictograph(code):
                    yield from _drawn(f"{path.stem}_{code:05x}".lower(), font, code, in_color=_is_emoji(path))


def _is_emoji(path: Path) -> bool:
    return "ColorEmoji" in path.name


def _is_pictograph(code: int) -> bool:
    is_in_block = code >= 0x1F000 or 0x2600 <= code < 0x27C0 or 0xF000 <= code < 0xF300
    return is_in_block and unicodedata.category(chr(code)) in ("So", "Co")


def _drawn(
    label: str, font: ImageFont.FreeTypeFont, code: int, *, in_color: bool = False
) -> Iterator[Tuple[str, np.ndarray]]:
    image = Image.new("RGBA", (180, 180), 0)
    ImageDraw.Draw(image).text((30, 20), chr(code), font=font, fill="white", embedded_color=in_color)
    picture = _fitted(image)
    if picture is not None:
        yield label, picture


def drawings(root: Path) -> Iterator[Tuple[str, np.ndarray]]:
    """Yields openclipart's drawings; dark ones are made bright."""
    Image.MAX_IMAGE_PIXELS = None  # sizes are looked at before an image is decoded
    paths = sorted(path for path in root.rglob("openclipart/png/**/*.png") if not path.is_symlink())
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            if image.width * image.height <= _LARGEST_DRAWING:
                picture = _fitted(image.convert("RGBA"))
                if picture is not None:
                    yield f"{number:05d}", picture


def _fitted(image: Image.Image) -> Optional[np.ndarray]:
    """Returns the opaque part of an RGBA image, grey and bright on black, (SIDE, SIDE) uint8; None if that is empty."""
    box = image.getchannel("A").getbbox()
    if box is None:
        return None
    image = image.crop(box)
    image.thumbnail((SIDE - 2 * MARGIN, SIDE - 2 * MARGIN), Image.Resampling.BOX)
    opaque = np.asarray(image.getchannel("A"), np.float32) / 255
    tone = np.asarray(image.convert("RGB").convert("L"), np.float32) / 255
    if (tone * opaque).sum() < 0.35 * opaque.sum():
        tone = 1 - 0.9 * tone
    picture = np.zeros((SIDE, SIDE), np.uint8)
    height, width = opaque.shape
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    picture[top : top + height, left : left + width] = np.round(255 * tone * opaque)
    return picture if picture.std() >= _FEWEST_TONES else None


if __name__ == "__main__":
    run_command(main)

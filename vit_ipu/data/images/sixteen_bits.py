"""Images with more than 8 bits a value, of which the upper 8 bits are used: 65,535 is white.

OpenCV does the same; Pillow's own conversion, which torchvision's ImageFolder and timm use, turns grey values above 255
white. A file whose header states that white is less (12-bit TIFF, PGM) is scaled by its header. Numbers of 12 bits in a
file of 16 bits are nearly black: a PNG is required to fill its 16 bits (PNG specification, "Sample depth scaling"), so
the file does not tell such numbers from a dark image.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from PIL import Image

from vit_ipu.data.images.pillow_formats import open_image

LARGEST_OF_TWELVE_BITS = 4095
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""TIFF tags; the photometric interpretation 0 is "white is zero" (TIFF 6.0, section 8)."""
_PIXELS_AT_A_TIME = 1 << 22


def upper_bits(image: Image.Image) -> Image.Image:
    """Returns the upper 8 bits of a grey image in mode L, computed a band of rows at a time to save memory.

    Raises ValueError if a value is not within 0 to 65,535.
    """
    shift = 4 if _tag(image, _BITS_PER_SAMPLE) == (12,) else 8  # Pillow does not scale 12 bits
    inverted = 0xFF if _tag(image, _PHOTOMETRIC) == 0 else 0  # Pillow inverts only 8 bits and fewer
    found = Image.new("L", image.size)
    rows = max(1, _PIXELS_AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are negative or have more than 16 bits: save it with 8 or 16")
        found.paste(Image.fromarray((values >> shift).astype(np.uint8) ^ np.uint8(inverted)), (0, top))
    return found


def _tag(image: Image.Image, tag: int) -> Any:
    """Returns the value of a TIFF tag, or None if the image is not a TIFF or does not have the tag."""
    return getattr(image, "tag_v2", {}).get(tag)


def stated_bits(data: bytes) -> int:
    """Returns the bits a value of an image file with more than 8: the 32 of a TIFF of integers, or else 16."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(data) as image:
            return 32 if _tag(image, _BITS_PER_SAMPLE) == (32,) else 16


def has_sixteen_bits(data: bytes) -> bool:
    """Tells whether the header of an image file states 16 bits a value, or 32, which are read as if they were 16.

    A file that cannot be opened has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(data) as image:
                is_coloured = image.format in ("PNG", "TIFF") and ";16" in str(image.tile)
                return image.mode.startswith("I") or is_coloured
    except Exception:  # Pillow raises many kinds of errors for damaged files
        return False

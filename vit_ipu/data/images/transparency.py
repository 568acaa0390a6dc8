"""Transparency of images: whether an image has it, and the image on a background of one colour.

An opacity is a channel of its own, or that of a palette's colours, or a single colour is transparent (tRNS of PNG).
"""

from __future__ import annotations

from typing import Iterator, Tuple

import numpy as np
from PIL import Image

from vit_ipu.config_sections.colors import Rgb
from vit_ipu.data.images.sixteen_bits import upper_bits

_KEY = "transparency"
"""Pillow's name for the transparent colour, or the opacities of a palette, in the info of an image."""
_WITH_OPACITY = ("RGBA", "LA", "PA", "RGBa", "La")
_PNG, _DEPTH = b"\x89PNG\r\n\x1a\n", 24
"""First bytes of a PNG, and the position of its bits a value (PNG specification, "IHDR Image header")."""
_PIXELS_AT_A_TIME = 1 << 22


def may_be_transparent(image: Image.Image) -> bool:
    """Tells whether the header of an image allows transparency; the pixels may be opaque nevertheless."""
    return image.mode in _WITH_OPACITY or _KEY in image.info


def is_transparent(image: Image.Image) -> bool:
    """Tells whether a pixel of a decoded image is not opaque."""
    if not may_be_transparent(image):
        return False
    return any(_least_opacity(_with_opacity(part)) < 255 for _, part in _bands(image))


def laid_on(image: Image.Image, background: Rgb) -> Image.Image:
    """Returns a decoded image on a background of one colour, in mode RGB.

    The pixels are those of Pillow's alpha_composite to 1 grey level, computed a band of rows at a time to save memory.
    """
    canvas = Image.new("RGB", image.size, background)
    for top, part in _bands(image):
        part = _with_opacity(part)
        canvas.paste(part, (0, top), part)
    return canvas


def scale_transparent_color(image: Image.Image, data: bytes) -> None:
    """Scales the transparent colour of a PNG that has not 8 bits a value as Pillow scales the pixels: to 8 bits.

    Of 16 bits grey values stay as they are, and colours lose their lower 8 bits, as the pixels do. `data` are the bytes
    of the file.
    """
    key, mode = image.info.get(_KEY), image.mode
    if key is None or mode not in ("1", "L", "RGB") or not data.startswith(_PNG):
        return
    bits = data[_DEPTH]
    if mode == "RGB":
        image.info[_KEY] = tuple(value >> 8 if bits == 16 else value & 0xFF for value in key)
    elif mode == "1":  # newer versions of Pillow have scaled it already
        image.info[_KEY] = 255 if key else 0
    else:
        largest = (1 << bits) - 1
        image.info[_KEY] = (key & largest) * 255 // largest


def _bands(image: Image.Image) -> Iterator[Tuple[int, Image.Image]]:
    """Yields bands of rows, each with the number of its first row."""
    rows = max(1, _PIXELS_AT_A_TIME // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _with_opacity(image: Image.Image) -> Image.Image:
    """Returns an image that may be transparent in mode RGBA: pasting an image of mode LA may lose two channels."""
    if image.mode == "RGBA":
        return image
    if image.mode.startswith("I"):
        opaque = np.asarray(image) != image.info[_KEY]
        grey, opacity = upper_bits(image), Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))
        return Image.merge("RGBA", (grey, grey, grey, opacity))
    step = {"1": "L", "La": "LA"}.get(image.mode)  # modes that Pillow does not convert at once
    return (image if step is None else image.convert(step)).convert("RGBA")


def _least_opacity(image: Image.Image) -> int:
    least = image.getchannel("A").getextrema()[0]
    assert isinstance(least, int)
    return least

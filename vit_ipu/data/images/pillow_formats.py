"""Opens images by Pillow: only the documented formats, and none that would fill the memory from a small file.

Pillow chooses its plugin by the bytes, not by the name: without a list of formats, an EPS file called .jpg would start
Ghostscript.
"""

from __future__ import annotations

import io

from PIL import Image, ImageFile

from vit_ipu.text import counted

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")
"""Pillow's names of the formats that are read, those of base.IMAGE_SUFFIXES; AVIF needs Pillow 11.3."""
MAX_FILE_BYTES = 512 << 20
"""Bytes of the largest image file."""
MAX_PIXELS = 10**9
"""Pixels of the largest image that is read: 4 GB in Pillow's memory."""
_LARGE, _MAX_PIXELS_PER_BYTE = 200 * 10**6, 500
"""An image of more than `_LARGE` pixels is refused if its file has more pixels a byte: it would fill gigabytes with one
colour. Photographs have about 10 pixels a byte, and scanned pages fewer than 100."""

# Pillow's own bound refuses images above 179 megapixels as decompression bombs. It raises at twice this number.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

TOO_LARGE = f"it has more than {MAX_PIXELS // 10**6} megapixels: make it smaller"


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Opens the image in the bytes of a file; its pixels are not decoded yet.

    Raises Pillow's errors of many kinds, among them ValueError for too many pixels in too small a file.
    """
    Image.init()  # so that it is known which formats this Pillow reads
    image: ImageFile.ImageFile = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    require_pixels(image.width * image.height, len(data))
    return image


def require_pixels(pixels: int, num_bytes: int) -> None:
    """Raises ValueError if a file of `num_bytes` has too many pixels to be a picture."""
    if pixels > MAX_PIXELS:
        raise ValueError(TOO_LARGE)
    if pixels > _LARGE and pixels > _MAX_PIXELS_PER_BYTE * num_bytes:
        size = counted(pixels // 10**6, "megapixel")
        raise ValueError(f"it has {size} in {num_bytes:,} bytes, which no picture has: make it smaller")

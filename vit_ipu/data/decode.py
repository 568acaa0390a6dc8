"""Pictures: images of any size and format, of which a square crop is taken as bytes, decoding no more than it needs.

A plain JPEG is decoded by simplejpeg (libjpeg-turbo), in reduced size where the crop is much larger than what becomes
of it, and only the crop is resized. Everything else is Pillow's. benchmarks/jpeg_decoders.py has the measurements.
Pictures are upright: the Exif orientation is applied, and sizes and boxes are those of the upright image.
Pixels are arrays (H, W, 3) of uint8.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Dict, Optional, Protocol, Tuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_ipu.config import UserError
from vit_ipu.data.resize import (
    QUICK_IN_TORCH,
    Box,
    Size,
    center_box,
    center_offset,
    resized,
    resized_by_pillow,
    resized_size,
)

Orientation = Tuple[bool, bool, bool]
"""How stored pixels become upright: whether to transpose, after flipping the rows, and the columns."""

MAX_PIXELS = 10**9
"""Of the largest image that is read: 4 GB in Pillow's memory."""
REDUCED_MARGIN = 2
"""A crop keeps this many times its final side when a JPEG is decoded in reduced size: below about 1.75 the difference
from a full decode passes a mean of 2 grey levels on detailed photographs."""
_MOST_RESIZED = 4
"""How many times the pixels of its middle are made of an image that is resized whole."""

# Pillow's own bound refuses images above 179 megapixels as decompression bombs. It raises at twice this number.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

_TOO_LARGE = "it has more than {} megapixels: make it smaller".format(MAX_PIXELS // 10**6)
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_ORIENTATION_TAG = 0x0112
_UPRIGHT = (False, False, False)
_ORIENTATIONS: Dict[int, Orientation] = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""By the number that Exif has for it (Exif 2.3, section 4.6.4)."""


class DataError(UserError):
    """Images that are missing or cannot be read: one line with the path and the remedy."""


class Picture(Protocol):
    """An upright image that may not be decoded yet."""

    @property
    def size(self) -> Size:
        """Width and height."""

    def crop(self, box: Box, size: int, interpolation: str) -> "np.ndarray":
        """The pixels (size, size, 3) of the box, resized with antialiasing ("bilinear" or "bicubic")."""

    def middle(self, short_side: int, size: int, interpolation: str) -> "np.ndarray":
        """The middle (size, size, 3) of the image after its short side became `short_side`."""


class DecodedImage:
    """An image of Pillow's, of any mode; 16 bits are scaled, transparency is dropped."""

    def __init__(self, image: Image.Image) -> None:
        """Raises ValueError for numbers wider than 16 bits."""
        self._image = _of_bytes(image)

    @property
    def size(self) -> Size:
        return self._image.size

    def crop(self, box: Box, size: int, interpolation: str) -> "np.ndarray":
        if self._image.mode != "RGBA":
            return np.array(resized_by_pillow(self._image, box, (size, size), interpolation).convert("RGB"))
        # Pillow would weight the colours by the opacity; and to drop that first doubles the memory of a large image.
        bands = [resized_by_pillow(self._image.getchannel(name), box, (size, size), interpolation) for name in "RGB"]
        return np.array(Image.merge("RGB", bands))

    def middle(self, short_side: int, size: int, interpolation: str) -> "np.ndarray":
        return self.crop(center_box(self.size, short_side, size), size, interpolation)

    def rgb(self) -> Image.Image:
        """The whole image."""
        return self._image if self._image.mode == "RGB" else self._image.convert("RGB")


class EncodedImage:
    """The bytes of an image file."""

    def __init__(self, data: bytes, name: str) -> None:
        """`name` stands in messages. Raises DataError if the image is too large; other faults show when it is used."""
        self.data, self._name = data, name
        self._decoded: Optional[DecodedImage] = None
        self._stored_size = _plain_jpeg_size(data)
        self._orientation = _UPRIGHT
        if self._stored_size is not None:
            if self._stored_size[0] * self._stored_size[1] > MAX_PIXELS:
                raise self._unreadable(_TOO_LARGE)
            self._orientation = _jpeg_orientation(data)

    @property
    def size(self) -> Size:
        if self._stored_size is None:
            return self._by_pillow().size
        width, height = self._stored_size
        return (height, width) if self._orientation[0] else (width, height)

    def crop(self, box: Box, size: int, interpolation: str) -> "np.ndarray":
        """As Picture.crop. Raises DataError if the file is damaged."""
        if self._stored_size is not None:
            box_as_stored = _box_as_stored(box, self._stored_size, self._orientation)
            pixels = _crop_jpeg(self.data, self._stored_size, box_as_stored, size, interpolation)
            if pixels is not None:
                return _upright(pixels, self._orientation)
        return self._by_pillow().crop(box, size, interpolation)

    def middle(self, short_side: int, size: int, interpolation: str) -> "np.ndarray":
        """As Picture.middle. Raises DataError if the file is damaged."""
        whole = resized_size(self.size, short_side)
        resizes_whole = interpolation in QUICK_IN_TORCH and whole[0] * whole[1] <= _MOST_RESIZED * size**2
        if self._stored_size is None or not resizes_whole:
            return self.crop(center_box(self.size, short_side, size), size, interpolation)
        whole_as_stored = whole[::-1] if self._orientation[0] else whole
        pixels = _resized_jpeg(self.data, self._stored_size, whole_as_stored, interpolation)
        if pixels is None:
            return self._by_pillow().middle(short_side, size, interpolation)
        left, top = center_offset(whole, size)
        return _upright(pixels, self._orientation)[top : top + size, left : left + size]

    def rgb(self) -> Image.Image:
        """The whole image, decoded by Pillow. Raises DataError if the file is damaged."""
        return self._by_pillow().rgb()

    def _by_pillow(self) -> DecodedImage:
        if self._decoded is None:
            try:
                self._decoded = _decode_by_pillow(self.data)
            except UnidentifiedImageError:
                raise self._unreadable("it is no image of a known format" if self.data else "it is empty") from None
            except Image.DecompressionBombError:
                raise self._unreadable(_TOO_LARGE) from None
            except Exception as error:  # damaged files make Pillow's plugins raise many kinds
                raise self._unreadable(str(error) or type(error).__name__) from None
        return self._decoded

    def _unreadable(self, reason: str) -> DataError:
        return unreadable(self._name, reason)


def unreadable(name: str, reason: str) -> DataError:
    """The one line that is said of an image that cannot be read."""
    return DataError("cannot read the image {}: {}".format(one_line(name), one_line(reason)))


def one_line(text: str) -> str:
    """The text with line breaks, and what a terminal cannot print, as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


# --------------------------------------------------------------------------------------- plain JPEG


def _plain_jpeg_size(data: bytes) -> Optional[Size]:
    """Width and height as stored, or None for what is not a JPEG of three colours or grey."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in ("YCbCr", "RGB", "Gray") else None


def _jpeg_orientation(data: bytes) -> Orientation:
    """As Pillow finds it, in Exif or else in XMP."""
    if not _has_metadata(data):
        return _UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1), _UPRIGHT)
    except Exception:  # damaged metadata of a sound image make Pillow raise many kinds
        return _UPRIGHT


def _has_metadata(data: bytes) -> bool:
    """Whether the header of a JPEG has a segment APP1, where Exif and XMP are; to open it takes ten times as long."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != _START_OF_SCAN:
        if data[start + 1] == _APP1:
            return True
        is_filled = data[start + 1] == 0xFF  # any number of these may stand before a marker (T.81, B.1.1.2)
        start += 1 if is_filled else 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return False


def _crop_jpeg(data: bytes, stored_size: Size, box: Box, size: int, interpolation: str) -> Optional["np.ndarray"]:
    """Pixels (size, size, 3) of the box; None if libjpeg-turbo finds any fault: Pillow knows which ones matter."""
    reduction = reduction_for(box, size)
    pixels = _decode_jpeg(data, stored_size, reduction)
    if pixels is None:
        return None
    left, top, right, bottom = (edge / reduction for edge in box)
    return resized(pixels, (left, top, right, bottom), (size, size), interpolation)


def _resized_jpeg(data: bytes, stored_size: Size, size: Size, interpolation: str) -> Optional["np.ndarray"]:
    """All pixels, as an image of this size; None as above."""
    reduction = reduction_for((0, 0, *stored_size), min(size))
    pixels = _decode_jpeg(data, stored_size, reduction)
    if pixels is None:
        return None
    return resized(pixels, (0, 0, stored_size[0] / reduction, stored_size[1] / reduction), size, interpolation)


def _decode_jpeg(data: bytes, stored_size: Size, reduction: int) -> Optional["np.ndarray"]:
    # The smallest of libjpeg-turbo's sizes that is at least this; 0 is the full size.
    width, height = (-(-side // reduction) if reduction > 1 else 0 for side in stored_size)
    try:
        return simplejpeg.decode_jpeg(data, min_width=width, min_height=height, min_factor=reduction)
    except ValueError:
        return None


def reduction_for(box: Box, size: int) -> int:
    """The divisor (1, 2, 4 or 8) of the sides that a JPEG is decoded with: the inverse transform is as much shorter."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((divisor for divisor in (8, 4, 2) if side >= REDUCED_MARGIN * divisor * size), 1)


def _box_as_stored(box: Box, stored_size: Size, orientation: Orientation) -> Box:
    left, top, right, bottom = box
    width, height = stored_size
    transposed, rows_flipped, columns_flipped = orientation
    if transposed:
        left, top, right, bottom = top, left, bottom, right
    if rows_flipped:
        top, bottom = height - bottom, height - top
    if columns_flipped:
        left, right = width - right, width - left
    return left, top, right, bottom


def _upright(pixels: "np.ndarray", orientation: Orientation) -> "np.ndarray":
    transposed, rows_flipped, columns_flipped = orientation
    pixels = pixels[:: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]
    return pixels.swapaxes(0, 1) if transposed else pixels


# ------------------------------------------------------------------------------------------- Pillow


def _decode_by_pillow(data: bytes) -> DecodedImage:
    """The first frame, upright."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sizes and odd palettes
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            with contextlib.suppress(Exception):  # damaged metadata of a sound image
                ImageOps.exif_transpose(image, in_place=True)
            return DecodedImage(image)


def _of_bytes(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA. Raises ValueError if its numbers have more than 16 bits."""
    mode = image.mode
    if mode in ("L", "RGB", "RGBA"):
        return image
    if mode == "F":
        raise ValueError("its pixels are floats: save it with 8 or 16 bits")
    if mode.startswith("I"):
        return _of_sixteen_bits(image)
    if mode in ("LA", "La"):
        return image.getchannel("L")
    return image.convert("L" if mode == "1" else "RGB")


def _of_sixteen_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits in mode L, a band of rows at a time: an image may be large."""
    found = Image.new("L", image.size)
    rows = max(1, (1 << 22) // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits: save it with 8 or 16")
        found.paste(Image.fromarray((values >> 8).astype(np.uint8)), (0, top))
    return found

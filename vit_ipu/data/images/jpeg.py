"""Plain JPEGs, decoded by simplejpeg (libjpeg-turbo), in reduced size if a crop is much larger than its resized result.

benchmarks/jpeg_decoders.py has the measurements. Pixels are arrays (H, W, 3) of uint8, and upright: the orientation of
Exif is applied. "As stored" means before the orientation is applied.
"""

from __future__ import annotations

import warnings
from typing import Dict, Optional, Tuple

import numpy as np
import simplejpeg

from vit_ipu.data.images.pillow_formats import open_image
from vit_ipu.data.images.resize import Box, Size, resized

Orientation = Tuple[bool, bool, bool]
"""Steps that make stored pixels upright: (transpose, flip rows, flip columns), with the flips first."""

REDUCED_MARGIN = 2
"""A crop keeps this many times its final side when a JPEG is decoded in reduced size: below about 1.75 the difference
from a full decode exceeds a mean of 2 grey levels on detailed photographs."""
_COARSE_COLOURS = "411"
"""The subsampling whose colours a reduced decode upsamples differently: up to 16 grey levels in the 99th percentile."""

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
"""The orientation of each Exif value (Exif 2.3, section 4.6.4)."""


class PlainJpeg:
    """The bytes of a JPEG of three colours or grey. Its methods return None if libjpeg-turbo finds any fault: Pillow
    knows which faults matter."""

    def __init__(self, data: bytes, stored_size: Size, *, is_reducible: bool) -> None:
        self._data, self._stored_size, self._is_reducible = data, stored_size, is_reducible
        self._orientation = _orientation(data)

    @classmethod
    def of(cls, data: bytes) -> Optional[PlainJpeg]:
        """Returns the JPEG in `data`, or None if `data` is not such a JPEG."""
        if not data.startswith(b"\xff\xd8"):
            return None
        try:
            height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(data)
        except (ValueError, KeyError):  # KeyError: colours that simplejpeg does not know, such as 4:4:1
            return None
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        return cls(data, (width, height), is_reducible=subsampling != _COARSE_COLOURS)

    @property
    def size(self) -> Size:
        """Width and height."""
        width, height = self._stored_size
        return (height, width) if self._orientation[0] else (width, height)

    def crop(self, box: Box, size: int, interpolation: str) -> Optional[np.ndarray]:
        """Returns the pixels (size, size, 3) of the box."""
        return self._resized(_box_as_stored(box, self._stored_size, self._orientation), (size, size), interpolation)

    def resized(self, size: Size, interpolation: str) -> Optional[np.ndarray]:
        """Returns the complete image, resized to this width and height."""
        return self._resized((0, 0, *self._stored_size), size[::-1] if self._orientation[0] else size, interpolation)

    def _resized(self, box: Box, size: Size, interpolation: str) -> Optional[np.ndarray]:
        """Resizes the box to `size`, both as stored, and returns upright pixels."""
        reduction = reduction_for(box, min(size)) if self._is_reducible else 1
        # libjpeg-turbo uses its smallest size that is at least (width, height); 0 means the full size.
        width, height = (-(-side // reduction) if reduction > 1 else 0 for side in self._stored_size)
        try:
            pixels = simplejpeg.decode_jpeg(self._data, min_width=width, min_height=height, min_factor=reduction)
        except ValueError:
            return None
        left, top, right, bottom = (edge / reduction for edge in box)
        return _upright(resized(pixels, (left, top, right, bottom), size, interpolation), self._orientation)


def reduction_for(box: Box, size: int) -> int:
    """Returns the divisor (1, 2, 4 or 8) of a decode's sides, by which the inverse transform becomes shorter, too."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((divisor for divisor in (8, 4, 2) if side >= REDUCED_MARGIN * divisor * size), 1)


# -------------------------------------------------------------------------------------- orientation


def _orientation(data: bytes) -> Orientation:
    """Returns the orientation that Pillow finds in Exif or else in XMP."""
    if not _has_metadata(data):
        return _UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(data) as image:
                return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1), _UPRIGHT)
    except Exception:  # Pillow raises many kinds of errors for damaged metadata of a sound image
        return _UPRIGHT


def _has_metadata(data: bytes) -> bool:
    """Tells whether a JPEG has a segment APP1, which holds Exif and XMP; opening the image takes ten times as long."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != _START_OF_SCAN:
        if data[start + 1] == _APP1:
            return True
        is_filled = data[start + 1] == 0xFF  # any number of fill bytes may precede a marker (T.81, B.1.1.2)
        start += 1 if is_filled else 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return False


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


def _upright(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    transposed, rows_flipped, columns_flipped = orientation
    pixels = pixels[:: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]
    return pixels.swapaxes(0, 1) if transposed else pixels

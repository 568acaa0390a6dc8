"""Pictures: images of any size and format that give square crops as uint8 pixels and decode no more than needed.

A plain JPEG is decoded no larger than necessary, and only the crop is resized (jpeg.py). Pillow does everything else.
Pictures are upright: the Exif orientation is applied, and sizes and boxes are those of the upright image.
Pixels are arrays (H, W, 3) of uint8.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Iterator, NamedTuple, Optional, Protocol

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_ipu.config_sections.colors import Rgb
from vit_ipu.data.images.jpeg import PlainJpeg
from vit_ipu.data.images.pillow_formats import TOO_LARGE, open_image, require_pixels
from vit_ipu.data.images.resize import (
    QUICK_IN_TORCH,
    Box,
    Size,
    center_box,
    center_offset,
    resized_by_pillow,
    resized_size,
)
from vit_ipu.data.images.sixteen_bits import LARGEST_OF_TWELVE_BITS, has_sixteen_bits, upper_bits
from vit_ipu.data.images.transparency import (
    is_transparent,
    laid_on,
    may_be_transparent,
    scale_transparent_color,
)
from vit_ipu.errors import DataError
from vit_ipu.text import escaped

_MOST_RESIZED = 4
"""A complete image is resized for its center crop only if the result has at most this many times the crop's pixels."""


class Picture(Protocol):
    """An upright image that may not be decoded yet."""

    @property
    def size(self) -> Size:
        """Width and height."""

    def crop(self, box: Box, size: int, interpolation: str) -> np.ndarray:
        """Returns the pixels (size, size, 3) of the box, resized with antialiasing ("bilinear" or "bicubic")."""

    def middle(self, short_side: int, size: int, interpolation: str) -> np.ndarray:
        """Returns the center crop (size, size, 3) of the image after its short side became `short_side`."""


class Header(NamedTuple):
    """Facts about an image that are known before it is decoded."""

    size: Size
    """Width and height as stored: an image may yet be turned upright."""
    may_be_transparent: bool
    """Whether the image has opacities, which may all be full."""


class DecodedImage:
    """A Pillow image of any mode; 16-bit values are scaled to 8 bits."""

    def __init__(self, image: Image.Image, background: Optional[Rgb] = None) -> None:
        """Lays a transparent image on `background`; None: transparency is dropped.

        Raises ValueError if pixel values are not numbers of at most 16 bits.
        """
        is_laid = background is not None and may_be_transparent(image)
        self._image = laid_on(image, background) if background is not None and is_laid else _of_bytes(image)

    @property
    def size(self) -> Size:
        return self._image.size

    def crop(self, box: Box, size: int, interpolation: str) -> np.ndarray:
        if self._image.mode != "RGBA":
            return np.array(resized_by_pillow(self._image, box, (size, size), interpolation).convert("RGB"))
        # Pillow would weight colours by the opacity; dropping the opacity first doubles the memory of a large image.
        bands = [resized_by_pillow(self._image.getchannel(name), box, (size, size), interpolation) for name in "RGB"]
        return np.array(Image.merge("RGB", bands))

    def middle(self, short_side: int, size: int, interpolation: str) -> np.ndarray:
        return self.crop(center_box(self.size, short_side, size), size, interpolation)

    def rgb(self) -> Image.Image:
        """Returns the complete image in mode RGB."""
        return self._image if self._image.mode == "RGB" else self._image.convert("RGB")


class EncodedImage:
    """The bytes of an image file."""

    def __init__(self, data: bytes, name: str) -> None:
        """`name` is for messages. Raises DataError if a plain JPEG is too large; other faults show at the first use."""
        self.data, self.name = data, name
        self._background: Optional[Rgb] = None
        self._decoded: Optional[DecodedImage] = None
        self._jpeg = PlainJpeg.of(data)
        if self._jpeg is not None:
            try:
                require_pixels(self._jpeg.size[0] * self._jpeg.size[1], len(data))
            except ValueError as error:
                raise self._unreadable(str(error)) from None

    def on(self, background: Optional[Rgb]) -> EncodedImage:
        """Lays the image, which is not decoded yet, on a colour where it is transparent, and returns it.

        None: transparency is dropped.
        """
        self._background = background
        return self

    def header(self) -> Header:
        """Returns what is known without decoding the pixels. Raises DataError if the file is not an image."""
        if self._jpeg is not None:
            return Header(self._jpeg.size, may_be_transparent=False)
        with self._reading(), open_image(self.data) as image:
            return Header(image.size, may_be_transparent(image))

    def is_transparent(self) -> bool:
        """Decodes the image, and tells whether a pixel is not opaque. Raises DataError if the file is damaged."""
        if self._jpeg is not None:
            return False
        with self._reading():
            return is_transparent(_upright_by_pillow(self.data))

    @property
    def size(self) -> Size:
        return self._by_pillow().size if self._jpeg is None else self._jpeg.size

    def crop(self, box: Box, size: int, interpolation: str) -> np.ndarray:
        """Implements Picture.crop. Raises DataError if the file is damaged."""
        pixels = None if self._jpeg is None else self._jpeg.crop(box, size, interpolation)
        return self._by_pillow().crop(box, size, interpolation) if pixels is None else pixels

    def middle(self, short_side: int, size: int, interpolation: str) -> np.ndarray:
        """Implements Picture.middle. Raises DataError if the file is damaged."""
        whole = resized_size(self.size, short_side)
        resizes_whole = interpolation in QUICK_IN_TORCH and whole[0] * whole[1] <= _MOST_RESIZED * size**2
        if self._jpeg is None or not resizes_whole:
            return self.crop(center_box(self.size, short_side, size), size, interpolation)
        pixels = self._jpeg.resized(whole, interpolation)
        if pixels is None:
            return self._by_pillow().middle(short_side, size, interpolation)
        left, top = center_offset(whole, size)
        return pixels[top : top + size, left : left + size]

    def rgb(self) -> Image.Image:
        """Returns the complete image in mode RGB, decoded by Pillow. Raises DataError if the file is damaged."""
        return self._by_pillow().rgb()

    def is_nearly_black_in_sixteen_bits(self) -> bool:
        """Tells whether the file has 16 bits a value but no value above 4,095: its upper 8 bits are nearly black.

        Such files usually hold numbers of 12 bits. Raises DataError if the file is damaged.
        """
        if self._jpeg is not None or not has_sixteen_bits(self.data):
            return False
        return int(np.asarray(self.rgb()).max()) <= LARGEST_OF_TWELVE_BITS >> 8

    def _by_pillow(self) -> DecodedImage:
        if self._decoded is None:
            with self._reading():
                self._decoded = DecodedImage(_upright_by_pillow(self.data), self._background)
        assert self._decoded is not None
        return self._decoded

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Silences warnings of Pillow, and raises DataError, with the image's name and the reason, for its errors."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about sizes and odd palettes
                yield
        except UnidentifiedImageError:
            raise self._unreadable(_reason_unidentified(self.data)) from None
        except Image.DecompressionBombError:
            raise self._unreadable(TOO_LARGE) from None
        except Exception as error:  # Pillow's plugins raise many kinds of errors for damaged files
            raise self._unreadable(str(error) or type(error).__name__) from None

    def _unreadable(self, reason: str) -> DataError:
        return unreadable(self.name, reason)


def unreadable(name: str, reason: str) -> DataError:
    """Returns the error, with a one-line message, for an image that cannot be read."""
    return DataError(f"cannot read the image {escaped(name)}: {escaped(reason)}")


def _reason_unidentified(data: bytes) -> str:
    """Returns why Pillow knows no format for the bytes, and what to do if the format is a known one."""
    if not data:
        return "it is empty"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return f"it is damaged, or Pillow {PIL.__version__} does not read AVIF: use Pillow 11.3 or newer, or convert it"
    if data[4:8] == b"ftyp":
        return "it is HEIF or a film, which Pillow does not read: convert it to JPEG or PNG"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "it is damaged, or a TIFF that Pillow does not read: save it with 8 bits a value and 1 or 3 channels"
    if data.lstrip()[:1] == b"<":
        return "it is text, such as SVG or the web page of a failed download"
    return "it is not an image of a known format"


# ------------------------------------------------------------------------------------------- Pillow


def _upright_by_pillow(data: bytes) -> Image.Image:
    """Decodes the first frame, and turns it upright."""
    with open_image(data) as image:
        image.load()
        scale_transparent_color(image, data)
        with contextlib.suppress(Exception):  # damaged metadata of a sound image
            ImageOps.exif_transpose(image, in_place=True)
        return image


def _of_bytes(image: Image.Image) -> Image.Image:
    """Converts an image to mode L, RGB or RGBA. Raises ValueError if its pixel values are not numbers of 16 bits."""
    mode = image.mode
    if mode in ("L", "RGB", "RGBA"):
        return image
    if mode == "F":
        raise ValueError("its pixels are floats: save it with 8 or 16 bits")
    if mode.startswith("I"):
        return upper_bits(image)
    if mode in ("LA", "La"):
        return image.getchannel("L")
    return image.convert("L" if mode == "1" else "RGB")

"""Images with transparency on a background of one colour, of every format and mode that has opacities."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from pictures import encoded, photograph, pillows_crop, png_of_chunks
from PIL import Image

from vit_ipu.data.images import decode, transparency
from vit_ipu.data.images.decode import DecodedImage, EncodedImage

COLOR = (250, 100, 7)
BOX = (0, 0, 50, 50)
OPACITY = np.random.default_rng(0).integers(256, size=(50, 60), dtype=np.uint8)
OPACITY[:10], OPACITY[10:20] = 0, 255


def with_opacity(mode="RGB"):
    image = photograph((60, 50)).convert(mode)
    image.putalpha(Image.fromarray(OPACITY))
    return image


def palette(transparent):
    return encoded(photograph((60, 50)).quantize(64), "PNG", transparency=transparent)


def sixteen_bits():
    blue_first = np.dstack([np.asarray(photograph((60, 50)))[..., ::-1], OPACITY]).astype(np.uint16) * 257
    return cv2.imencode(".png", blue_first)[1].tobytes()


def posterized(mode):
    return photograph((60, 50)).convert(mode).point(lambda value: value // 64 * 64)


FILES = {
    "RGBA": lambda: encoded(with_opacity(), "PNG"),
    "grey with opacity": lambda: encoded(with_opacity("L"), "PNG"),
    "palette of opacities": lambda: palette(bytes(range(0, 256, 4))),
    "palette with one transparent colour": lambda: palette(5),
    "RGB with one transparent colour": lambda: encoded(posterized("RGB"), "PNG", transparency=(0, 0, 0)),
    "grey with one transparent value": lambda: encoded(posterized("L"), "PNG", transparency=64),
    "16 bits": sixteen_bits,
    "GIF": lambda: encoded(photograph((60, 50)).quantize(64), "GIF", transparency=5),
    "WebP": lambda: encoded(with_opacity(), "WEBP", lossless=True, exact=True),
    "TIFF": lambda: encoded(with_opacity(), "TIFF"),
    "TIFF of grey": lambda: encoded(with_opacity("L"), "TIFF"),
}


def composed_by_pillow(data, color=COLOR):
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")


@pytest.mark.parametrize("name", FILES)
def test_a_transparent_image_on_a_colour_is_that_of_pillow(name, recwarn):
    data = FILES[name]()
    expected = composed_by_pillow(data)
    picture = EncodedImage(data, name).on(COLOR)
    found = np.asarray(picture.rgb()).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1
    assert not np.array_equal(found, np.asarray(EncodedImage(data, name).rgb()))
    crop = picture.crop((3.5, 4, 33.5, 34), 24, "bicubic").astype(int)
    assert np.abs(crop - pillows_crop(expected, (3.5, 4, 33.5, 34), 24, "bicubic")).max() <= 2
    assert np.abs(picture.middle(50, 50, "bilinear").astype(int) - found[:, 5:55]).max() <= 1
    assert EncodedImage(data, name).header() == ((60, 50), True)
    assert EncodedImage(data, name).is_transparent()
    assert list(recwarn) == []


def png(bits, color_type, row, key):
    """Returns a PNG of one row of four pixels, of which those of the colour `key` are transparent."""
    pixels = zlib.compress(b"\0" + row)
    return png_of_chunks(4, 1, bits, color_type, (b"tRNS", key), (b"IDAT", pixels), (b"IEND", b""))


KEYED = {
    "1 bit": (png(1, 0, b"\x50", b"\0\1"), [0, None, 0, None]),
    "1 bit, black": (png(1, 0, b"\x50", b"\0\0"), [None, 255, None, 255]),
    "2 bits": (png(2, 0, b"\x1b", b"\0\1"), [0, None, 170, 255]),
    "4 bits": (png(4, 0, b"\x01\x2f", b"\0\2"), [0, 17, None, 255]),
    "8 bits": (png(8, 0, b"\x00\x01\x02\xff", b"\0\1"), [0, None, 2, 255]),
    "16 bits": (png(16, 0, struct.pack(">4H", 0, 1000, 1001, 65535), struct.pack(">H", 1000)), [0, None, 3, 255]),
    "16 bits, colours": (
        png(16, 2, b"".join(struct.pack(">H", value) * 3 for value in (0, 1000, 30000, 65535)), b"\xff\xff" * 3),
        [0, 3, 117, None],
    ),
}
"""PNGs, and the grey values of their pixels; None: transparent."""


@pytest.mark.parametrize("name", KEYED)
def test_the_transparent_colour_of_a_png_is_found_with_any_number_of_bits(name):
    data, greys = KEYED[name]
    found = np.asarray(EncodedImage(data, name).on(COLOR).rgb())[0].tolist()
    assert found == [list(COLOR) if grey is None else [grey] * 3 for grey in greys]


def test_a_transparent_image_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = EncodedImage(encoded(with_opacity(), "PNG", exif=exif), "turned").on(COLOR).rgb()
    expected = EncodedImage(encoded(with_opacity(), "PNG"), "as stored").on(COLOR).rgb()
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(expected), -1))


def test_bands_of_rows_give_the_same_image(monkeypatch):
    images = [with_opacity(), with_opacity("L"), photograph((60, 50)).quantize(64)]
    images[-1].info["transparency"] = 5
    whole = [np.asarray(DecodedImage(image, COLOR).rgb()) for image in images]
    monkeypatch.setattr(transparency, "_PIXELS_AT_A_TIME", 7 * 60)
    for image, expected in zip(images, whole):
        assert np.array_equal(np.asarray(DecodedImage(image, COLOR).rgb()), expected)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK")],
)
def test_images_without_opacities_are_left_as_they_are(monkeypatch, kind, mode):
    data = encoded(photograph((60, 50)).convert(mode), kind)
    expected = EncodedImage(data, "opaque").crop(BOX, 30, "bilinear")
    monkeypatch.setattr(decode, "laid_on", None)  # is not called
    picture = EncodedImage(data, "opaque").on(COLOR)
    assert np.array_equal(picture.crop(BOX, 30, "bilinear"), expected)
    assert not picture.header().may_be_transparent
    assert not picture.is_transparent()


def test_full_opacities_are_not_transparency():
    image = photograph((60, 50))
    image.putalpha(255)
    picture = EncodedImage(encoded(image, "PNG"), "opaque").on(COLOR)
    assert np.array_equal(np.asarray(picture.rgb()), np.asarray(photograph((60, 50))))
    assert picture.header().may_be_transparent
    assert not picture.is_transparent()


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_colours_that_are_multiplied_by_their_opacities_are_read(mode):
    image = with_opacity("L" if mode == "La" else "RGB")
    found = np.asarray(DecodedImage(image.convert(mode), COLOR).rgb()).astype(int)
    assert np.abs(found - np.asarray(DecodedImage(image, COLOR).rgb())).max() <= 2

"""Images with 12 and 16 bits a value, and floats."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.sixteen_bits import has_sixteen_bits
from vit_ipu.errors import DataError

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


def encoded(values, suffix="png"):
    return cv2.imencode("." + suffix, values)[1].tobytes()


def read(data):
    """Returns the first colour (H, W) as ints."""
    return np.asarray(EncodedImage(data, "image").rgb())[..., 0].astype(int)


def tiff(values, bits, photometric=1, byte_order="<"):
    """Returns an uncompressed grey TIFF (TIFF 6.0, sections 2 and 3) of one strip, whose bytes are `values`."""
    rows, columns = RAMP.shape
    entries = [(256, columns), (257, rows), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, rows)]
    entries.append((279, len(values)))
    start = 8 + len(values) + len(values) % 2
    header = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(byte_order + "I", start)
    table = b"".join(struct.pack(byte_order + "HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return header + values.ljust(start - 8, b"\0") + struct.pack(byte_order + "H", len(entries)) + table + bytes(4)


def twelve_bits(values):
    """Returns the values packed to 12 bits each, in the order of TIFF: two values in three bytes."""
    bits = "".join(f"{value:012b}" for value in values.ravel())
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


FILES = {
    "grey PNG": lambda: encoded(RAMP),
    "PNG": lambda: encoded(np.stack([RAMP] * 3, -1)),
    "PNG with opacity": lambda: encoded(np.stack([RAMP] * 4, -1)),
    "grey TIFF": lambda: encoded(RAMP, "tiff"),
    "TIFF": lambda: encoded(np.stack([RAMP] * 3, -1), "tiff"),
    "plain TIFF": lambda: tiff(RAMP.astype("<u2").tobytes(), 16),
    "big-endian TIFF": lambda: tiff(RAMP.astype(">u2").tobytes(), 16, byte_order=">"),
    "white-is-zero TIFF": lambda: tiff((65535 - RAMP).astype("<u2").tobytes(), 16, photometric=0),
    "12-bit TIFF": lambda: tiff(twelve_bits(RAMP >> 4), 12),
    "12-bit PGM": lambda: b"P5 8 8 4095\n" + (RAMP >> 4).astype(">u2").tobytes(),
    "16-bit PGM": lambda: b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", FILES)
def test_the_full_range_of_the_file_becomes_the_full_range_of_bytes(name):
    data = FILES[name]()
    assert np.abs(read(data) - RAMP / 257).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_upper_bits_are_those_of_opencv(channels):
    values = np.stack([RAMP] * channels, -1).squeeze()
    data = encoded(values)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert (read(data) == by_opencv[..., 0]).all()


@pytest.mark.parametrize("name", FILES)
def test_the_header_tells_sixteen_bits(name):
    assert has_sixteen_bits(FILES[name]())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_the_header_tells_eight_bits(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    assert not has_sixteen_bits(file.getvalue())
    assert not has_sixteen_bits(file.getvalue()[:20])


@pytest.mark.parametrize("highest", [4095, 4096])
def test_values_of_twelve_bits_are_nearly_black(highest):
    values = (RAMP >> 4).copy()
    values[3, 3] = highest
    for data in (encoded(values), encoded(np.stack([values] * 3, -1)), encoded(values, "tiff")):
        assert EncodedImage(data, "image").is_nearly_black_in_sixteen_bits() is (highest == 4095)


def test_values_below_zero_are_refused():
    file = io.BytesIO()
    Image.fromarray(RAMP.astype(np.int32) - 1).save(file, "TIFF")
    with pytest.raises(
        DataError, match="^cannot read the image a: its pixels are negative or have more than 16 bits: "
    ):
        EncodedImage(file.getvalue(), "a").rgb()


@pytest.mark.parametrize(
    ("dtype", "channels", "message"),
    [
        (np.float32, 1, "its pixels are floats: save it with 8 or 16 bits$"),
        (np.float32, 3, "it is damaged, or a TIFF that Pillow does not read: save it with 8 bits a value and 1 or 3 "),
        (np.float64, 1, "it is damaged, or a TIFF that Pillow does not read: save it with 8 bits a value and 1 or 3 "),
    ],
)
def test_floats_are_refused(dtype, channels, message):
    values = np.stack([RAMP] * channels, -1).squeeze().astype(dtype) / 65535
    with pytest.raises(DataError, match="^cannot read the image a: " + message):
        EncodedImage(encoded(values, "tiff"), "a").rgb()

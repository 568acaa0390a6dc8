"""Image files of every format, including odd, large and damaged files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from pictures import assert_alike, encoded, photograph, pillows_crop, png_of_chunks, upright_by_pillow
from PIL import Image, ImageOps

from vit_ipu.data.images.decode import DecodedImage, EncodedImage
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.errors import DataError
from vit_ipu.text import escaped

# ------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("size", [60, 224])
def test_exif_rotated_jpegs_are_upright(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Vit & Ipu"
    data = encoded(photograph((501, 379)), quality=90, exif=exif)
    upright = upright_by_pillow(data)
    picture = EncodedImage(data, "photograph")
    assert picture.size == upright.size == ((379, 501) if 5 <= orientation <= 8 else (501, 379))
    for box in ((11, 30, 311, 330), (11.5, 30.25, 311.5, 330.25)):
        found = picture.crop(box, size, "bilinear")
        assert_alike(found, pillows_crop(upright, box, size, "bilinear"))
        assert np.abs(found.astype(int) - pillows_crop(upright, box, size, "bilinear")).mean() < 1


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def app1(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/">%s</x:xmpmeta>'
ORIENTATIONS = {
    "Exif": app1(turned()),
    "Exif after fill bytes": b"\xff\xff" + app1(turned()),
    "XMP attribute": app1(XMP % b'<rdf:Description tiff:Orientation="6"/>'),
    "XMP element": app1(XMP % b"<tiff:Orientation>6</tiff:Orientation>"),
}


@pytest.mark.parametrize("place", ORIENTATIONS)
def test_an_orientation_is_found_where_pillow_finds_it(place):
    plain = encoded(photograph((50, 40)))
    data = plain[:2] + ORIENTATIONS[place] + plain[2:]
    expected = upright_by_pillow(data)
    picture = EncodedImage(data, "photograph")
    assert picture.size == expected.size
    assert (picture.crop((0, 0, 40, 40), 40, "bilinear") == np.asarray(expected)[:40, :40]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_other_formats_are_upright_too(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photograph((50, 40))
    data = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    picture = EncodedImage(data, "photograph")
    assert picture.size == (40, 50)
    expected = np.asarray(stored.transpose(Image.Transpose.ROTATE_270).crop((0, 0, 40, 40)))
    assert (picture.crop((0, 0, 40, 40), 40, "bilinear") == expected).all()


@pytest.mark.parametrize("damage", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0" + b"\xff" * 40, b"Exif"])
def test_damaged_metadata_is_ignored(damage, recwarn):
    image = photograph((50, 40))
    plain = encoded(image)
    data = plain[:2] + app1(damage) + plain[2:]
    picture = EncodedImage(data, "photograph")
    assert picture.size == (50, 40)
    assert (picture.crop((0, 0, 40, 40), 40, "bilinear") == np.asarray(image_of(plain))[:40, :40]).all()
    assert list(recwarn) == []


def image_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def ycck(image):
    """Returns the CMYK image as a JPEG in Adobe's YCCK: the file holds Y, Cb, Cr of (C, M, Y), and K inverted."""
    bands = image.split()
    luma_and_chroma = Image.merge("RGB", bands[:3]).convert("YCbCr").split()
    data = encoded(Image.merge("CMYK", [*map(ImageOps.invert, luma_and_chroma), bands[3]]), quality=100)
    adobe = data.index(b"Adobe")
    return data[: adobe + 11] + b"\x02" + data[adobe + 12 :]


def cmyk():
    red, green, blue = photograph((60, 50)).split()
    return Image.merge("CMYK", [red, green, blue, Image.new("L", (60, 50), 40)])


def animation(kind):
    frames = [Image.new("RGB", (60, 50), color) for color in ("red", "lime", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)


def palette():
    image = photograph((60, 50)).quantize(200)
    return encoded(image, "PNG", transparency=bytes(range(200))), image.convert("RGB")


SIXTEEN = Image.fromarray(np.linspace(0, 65535, 3000).reshape(50, 60).astype(np.uint16))
ODD_FILES = {
    "grey JPEG": lambda: (encoded(photograph((60, 50)).convert("L")), None),
    "progressive JPEG": lambda: (encoded(photograph((60, 50)), progressive=True), None),
    "JPEG of RGB": lambda: (encoded(photograph((60, 50)), quality=100, keep_rgb=True), photograph((60, 50))),
    "CMYK JPEG": lambda: (encoded(cmyk(), quality=100), cmyk().convert("RGB")),
    "YCCK JPEG": lambda: (ycck(cmyk()), cmyk().convert("RGB")),
    "JPEG and more": lambda: (encoded(photograph((60, 50))) + b"more", None),
    "JPEG with bytes before its end": lambda: (encoded(photograph((60, 50)))[:-2] + b"\0\1\2\3\xff\xd9", None),
    "16-bit PNG": lambda: (encoded(SIXTEEN, "PNG"), image_of_bytes(np.asarray(SIXTEEN) >> 8)),
    "palette with transparency": palette,
    "GIF": lambda: (animation("GIF"), Image.new("RGB", (60, 50), "red")),
    "WebP": lambda: (animation("WEBP"), Image.new("RGB", (60, 50), "red")),
}


def image_of_bytes(values):
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_are_read(name, recwarn):
    data, expected = ODD_FILES[name]()
    expected = expected or image_of(data)
    picture = EncodedImage(data, name)
    assert picture.size == (60, 50)
    found = picture.crop((5, 0, 55, 50), 50, "bilinear")
    difference = np.abs(found.astype(int) - np.asarray(expected)[:, 5:55])
    assert difference.mean() <= 2
    assert difference.max() <= 12
    assert picture.rgb().size == (60, 50)
    assert list(recwarn) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_of_one_pixel_is_read(kind):
    picture = EncodedImage(encoded(Image.new("RGB", (1, 1), (200, 100, 50)), kind), "dot")
    assert picture.size == (1, 1)
    assert (np.abs(picture.crop((0, 0, 1, 1), 3, "bicubic").astype(int) - (200, 100, 50)) <= 3).all()


def test_transparency_is_dropped():
    image = photograph((60, 50))
    opacity = Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 60), dtype=np.uint8))
    image.putalpha(opacity)
    expected = pillows_crop(image.convert("RGB"), (3, 4, 33, 34), 24, "bicubic")
    assert (DecodedImage(image).crop((3, 4, 33, 34), 24, "bicubic") == expected).all()


# ------------------------------------------------------------------------------------- large images


def write_large_png(path, side, channels):
    """Writes a PNG of one grey, row by row."""
    compress = zlib.compressobj(1)
    row = b"\0" + b"\x80" * (channels * side)
    content = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()
    path.write_bytes(png_of_chunks(side, side, 8, {3: 2, 4: 6}[channels], (b"IDAT", content), (b"IEND", b"")))


LARGE = """
import resource, sys
from vit_ipu.data.images.image_file import open_picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, most of them torch's
picture = open_picture(sys.argv[1])
assert picture.size == (13000, 13000)
assert (picture.crop((0, 0, 13000, 13000), 224, "bilinear") == 128).all()
assert (picture.crop((500, 500, 700, 700), 224, "bilinear") == 128).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("channels", [3, 4])
def test_169_megapixels_need_little_more_than_their_pixels(tmp_path, channels):
    write_large_png(tmp_path / "large.png", 13000, channels)
    command = [sys.executable, "-W", "error", "-c", LARGE, str(tmp_path / "large.png")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) * 1024 < 0.9e9  # Pillow holds 4 bytes a pixel: 0.68e9


def test_gigapixels_are_refused_before_they_are_decoded():
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8))))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 40000, 40000)
    for data in (png_of_chunks(40000, 40000, 8, 2, (b"IDAT", b"")), bytes(jpeg)):
        with pytest.raises(DataError, match="cannot read the image large: it has more than 1000 megapixels"):
            _ = EncodedImage(data, "large").size


# ------------------------------------------------------------------------------------ damaged files

BAD_FILES = {
    "empty": (b"", "it is empty"),
    "text": (b"no image\n", "it is not an image of a known format"),
    "truncated": (encoded(photograph())[:9000], "truncated"),
    "without its last bytes": (encoded(photograph())[:-20], "truncated"),
    "cut in its header": (encoded(photograph())[:300], ""),
    "first bytes of a JPEG": (b"\xff\xd8\xff", ""),
    "truncated PNG": (encoded(photograph(), "PNG")[:9000], "truncated"),
    "first bytes of a PNG": (b"\x89PNG\r\n\x1a\n cut off", ""),
    "truncated CMYK": (encoded(cmyk())[:1500], "truncated"),
    "truncated WebP": (encoded(photograph(), "WEBP")[:3000], ""),
    "AVIF that is cut off": (b"\0\0\0\x1cftypavif\0\0", "use Pillow 11.3 or newer, or convert it"),
    "HEIF": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1",
        "HEIF or a film, which Pillow does not read: convert it to JPEG or PNG",
    ),
    "SVG": (
        b'\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "it is text, such as SVG or the web page of a failed download",
    ),
    "web page": (b"<!DOCTYPE html><title>404</title>", "it is text, such as SVG or the web page of a failed download"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name):
    content, reason = BAD_FILES[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_picture(str(path)).crop((0, 0, 10, 10), 224, "bilinear")
    message = str(caught.value)
    assert message.startswith(f"cannot read the image {path}: ")
    assert reason in message
    assert message.isprintable()


def test_a_folder_named_like_an_image_is_refused(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(DataError, match="cannot read the image .*x.jpg: Is a directory$"):
        open_picture(str(tmp_path / "x.jpg"))
    with pytest.raises(DataError, match="no image at .*nowhere.jpg$"):
        open_picture(str(tmp_path / "nowhere.jpg"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\nb.jpg", "a\\nb.jpg"), (b"\xff\x1b[1m.jpg", "\\udcff\\x1b[1m.jpg"), ("é 日.jpg".encode(), "é 日.jpg")],
)
def test_odd_names_are_printed_in_one_line(tmp_path, name, shown):
    path = os.fsdecode(os.path.join(os.fsencode(str(tmp_path)), name))
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(DataError) as caught:
        open_picture(path).rgb()
    assert str(caught.value) == f"cannot read the image {tmp_path}/{shown}: it is not an image of a known format"
    assert escaped(path) == f"{tmp_path}/{shown}"
    str(caught.value).encode()

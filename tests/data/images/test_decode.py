"""Crops of pictures, compared with the pixels of Pillow and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    assert_alike,
    encoded,
    large_photograph,
    photograph,
    photographs,
    pillows_crop,
    torchvisions_middle,
    upright_by_pillow,
)
from PIL import Image

from vit_ipu.data.images.decode import EncodedImage
from vit_ipu.data.images.jpeg import PlainJpeg, reduction_for
from vit_ipu.data.images.resize import center_box
from vit_ipu.data.images.transforms import random_resized_box

BOTH_FILTERS = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


@pytest.fixture(scope="module")
def files():
    return photographs(200)


# ------------------------------------------------------------------------------------------- pixels


@BOTH_FILTERS
def test_random_crops_of_photographs_match_pillow(files, interpolation):
    rng = np.random.default_rng(1)
    for data in files:
        box = random_resized_box((500, 375), (0.08, 1.0), (0.75, 4 / 3), rng)
        found = EncodedImage(data, "photograph").crop(box, 224, interpolation)
        assert_alike(found, pillows_crop(upright_by_pillow(data), box, 224, interpolation))


@BOTH_FILTERS
@pytest.mark.parametrize("size", [(3000, 2000), (1503, 2001), (4001, 3003)])
def test_random_crops_of_large_photographs_match_pillow(interpolation, size):
    data = encoded(large_photograph(size), quality=90)
    whole, rng, reductions = upright_by_pillow(data), np.random.default_rng(1), set()
    for side in (224, 384) * 12:
        box = random_resized_box(size, (0.08, 1.0), (0.75, 4 / 3), rng)
        reductions.add(reduction_for(box, side))
        found = EncodedImage(data, "photograph").crop(box, side, interpolation)
        assert_alike(found, pillows_crop(whole, box, side, interpolation))
    assert reductions >= {1, 2}
    for short_side, side in ((256, 224), (384, 384)):
        found = EncodedImage(data, "photograph").middle(short_side, side, interpolation)
        assert_alike(found, torchvisions_middle(whole, short_side, side, interpolation))


@BOTH_FILTERS
@pytest.mark.parametrize("size", [22, 23, 46, 47, 90, 93, 130])
def test_crops_of_a_reduced_decode_match_pillow(files, interpolation, size):
    for data in files[:30]:
        box = center_box((500, 375), size, size)
        found = EncodedImage(data, "photograph").crop(box, size, interpolation)
        assert_alike(found, pillows_crop(upright_by_pillow(data), box, size, interpolation))


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 400))
def test_a_reduced_decode_leaves_twice_the_pixels_that_are_needed(width, height, size):
    reduction = reduction_for((0, 0, width, height), size)
    assert reduction == 1 or min(width, height) / reduction >= 2 * size
    assert reduction == 8 or min(width, height) / reduction < 4 * size


def test_large_crops_are_decoded_in_reduced_size(monkeypatch):
    decode, decoded = simplejpeg.decode_jpeg, []
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: decoded.append(decode(*a, **k)) or decoded[-1])
    picture = EncodedImage(encoded(photograph((1003, 805))), "photograph")
    for side in (800, 799, 400, 399, 200, 100):
        picture.crop((100, 5, 100 + side, 5 + side), 100, "bilinear")
    assert [pixels.shape for pixels in decoded] == [
        (202, 251, 3),
        (403, 502, 3),
        (403, 502, 3),
        (805, 1003, 3),
        (805, 1003, 3),
        (805, 1003, 3),
    ]


@pytest.mark.parametrize("subsampling", ["444", "422", "440", "420", "411"])
def test_crops_match_pillow_for_every_chroma_subsampling(subsampling):
    pixels = np.asarray(large_photograph((2000, 1500)))
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", subsampling)
    box = (13, 7, 1413, 1407)  # a reduced decode of 4:1:1 would be at a 99th percentile of 13 to 16
    found = EncodedImage(data, "photograph").crop(box, 224, "bicubic")
    expected = pillows_crop(upright_by_pillow(data), box, 224, "bicubic")
    assert_alike(found, expected)
    assert (np.percentile(np.abs(found.astype(int) - expected), 99) <= 1) == (subsampling == "411")


@BOTH_FILTERS
@pytest.mark.parametrize("box", [(10.25, 20.5, 310.75, 321.0), (0, 0, 500, 375), (499, 374, 500, 375), (3, 4, 27, 28)])
def test_a_box_of_any_place_and_size_matches_pillow(interpolation, box):
    data = encoded(photograph(), quality=90)
    found = EncodedImage(data, "photograph").crop(box, 224, interpolation)
    cut = upright_by_pillow(data)
    if all(edge == int(edge) for edge in box):  # pixels outside of the box have no influence
        cut, box = cut.crop(box), None
    assert_alike(found, pillows_crop(cut, box, 224, interpolation))
    assert np.abs(found.astype(int) - pillows_crop(cut, box, 224, interpolation)).mean() < 0.5


def test_a_jpeg_that_simplejpeg_does_not_know_matches_pillow(monkeypatch):
    def refuse(data):
        raise KeyError(6)  # what simplejpeg raises for 4:4:1

    data = encoded(photograph(), quality=90)
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", refuse)
    found = EncodedImage(data, "photograph").crop((10, 20, 210, 220), 100, "bicubic")
    assert_alike(found, pillows_crop(upright_by_pillow(data), (10, 20, 210, 220), 100, "bicubic"))


def test_a_crop_of_the_right_size_is_not_resized():
    data = encoded(photograph(), quality=90)
    expected = np.asarray(upright_by_pillow(data).crop((10, 20, 110, 120)))
    assert (EncodedImage(data, "photograph").crop((10, 20, 110, 120), 100, "bicubic") == expected).all()


# --------------------------------------------------------------------------------------- the middle


@BOTH_FILTERS
@pytest.mark.parametrize(("short_side", "size"), [(256, 224), (384, 384), (90, 70)])
def test_the_middle_of_photographs_matches_torchvision(files, interpolation, short_side, size):
    for data in files[:40]:
        found = EncodedImage(data, "photograph").middle(short_side, size, interpolation)
        assert_alike(found, torchvisions_middle(upright_by_pillow(data), short_side, size, interpolation))


@pytest.mark.parametrize("size", [(375, 500), (640, 427), (100, 91), (37, 500), (2001, 1501), (1600, 1200)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_middle_of_any_size_and_orientation_matches_torchvision(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(size), quality=95, exif=exif)
    found = EncodedImage(data, "photograph").middle(256, 224, "bilinear")
    expected = torchvisions_middle(upright_by_pillow(data), 256, 224, "bilinear")
    assert_alike(found, expected)
    assert np.abs(found.astype(int) - expected).mean() < 0.7


def test_only_the_middle_of_a_panorama_is_resized(monkeypatch):
    data = encoded(photograph((4000, 40)), quality=90)
    expected = torchvisions_middle(upright_by_pillow(data), 256, 224, "bilinear")
    monkeypatch.setattr(PlainJpeg, "resized", None)
    assert_alike(EncodedImage(data, "photograph").middle(256, 224, "bilinear"), expected)

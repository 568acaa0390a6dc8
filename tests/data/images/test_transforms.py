"""Crops, flips and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import data_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_ipu.data.images.decode import DecodedImage
from vit_ipu.data.images.transforms import EvalTransform, TrainTransform, random_resized_box, to_pixels
from vit_ipu.data.loading.loader import stack_images
from vit_ipu.step import Normalize


def test_random_resized_crops_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image, count = Image.new("RGB", (120, 80)), 4000
    scale, ratio = (0.08, 1.0), (0.75, 4 / 3)
    ours = np.array([random_resized_box(image.size, scale, ratio, rng) for _ in range(count)])
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    top, left, height, width = theirs.T
    theirs = np.stack([left, top, left + width, top + height], 1)
    for a, b in zip(measures(ours), measures(theirs)):
        grid = np.union1d(a, b)
        cumulative = [np.searchsorted(np.sort(x), grid, side="right") / count for x in (a, b)]
        assert np.abs(cumulative[0] - cumulative[1]).max() < 1.95 * np.sqrt(2 / count)  # Kolmogorov-Smirnov, p = 0.001


def measures(boxes):
    """Returns left, top, width, height, area and aspect of boxes (n, 4)."""
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    return left, top, width, height, width * height, width / height


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10))
def test_boxes_lie_within_the_image(width, height, seed):
    left, top, right, bottom = random_resized_box(
        (width, height), (0.08, 1.0), (0.75, 4 / 3), np.random.default_rng(seed)
    )
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_an_extreme_aspect_falls_back_to_the_middle():
    box = random_resized_box((1000, 10), (0.9, 1.0), (0.75, 4 / 3), np.random.default_rng(0))
    assert box == (493, 0, 506, 10)


@pytest.mark.parametrize("size", [(28, 28), (50, 28), (28, 61), (1, 1), (300, 200)])
def test_evaluation_crop_has_the_models_size(size):
    transform = EvalTransform(data_config(eval_resize=32), 28)
    assert transform(DecodedImage(Image.new("RGB", size))).shape == (3, 28, 28)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (640, 427), (224, 224), (100, 91), (3, 80)])
@pytest.mark.parametrize(("short_side", "crop_side"), [(256, 224), (248, 224), (384, 384), (48, 32)])
def test_evaluation_crop_equals_torchvisions_resize_and_center_crop(size, short_side, crop_side):
    from torchvision.transforms import functional as TF

    pixels = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(TF.center_crop(TF.resize(image, short_side), [crop_side, crop_side])).astype(int)
    found = DecodedImage(image).middle(short_side, crop_side, "bilinear").astype(int)
    difference = np.abs(found - expected)
    assert difference.max() <= 2  # each is within 1 of the exact value; half a pixel of shift gives tens in noise
    assert difference.mean() < 0.3  # ties may be rounded either way


def test_an_image_of_the_right_size_is_unchanged():
    pixels = np.random.default_rng(0).integers(256, size=(28, 28, 3), dtype=np.uint8)
    assert (EvalTransform(data_config(), 28)(DecodedImage(Image.fromarray(pixels))) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "out_shape", "out_dtype"),
    [((8, 8, 3), np.float32, (3, 8, 8), np.uint8), ((8, 8, 3), np.uint8, (3, 8, 8), np.float32)]
    + [((8, 7, 3), np.uint8, (3, 8, 8), np.uint8), ((8, 8, 4), np.uint8, (4, 8, 8), np.uint8)],
)
def test_pixels_of_another_shape_or_type_are_refused(shape, dtype, out_shape, out_dtype):
    with pytest.raises(
        ValueError, match=r"^cannot write pixels \(8, . .\) \w+ into \(., 8, 8\) \w+$".replace(". .", "., .")
    ):
        to_pixels(np.zeros(shape, dtype), np.zeros(out_shape, out_dtype))


def test_flips_happen_at_the_configs_rate():
    ramp = DecodedImage(Image.fromarray(np.arange(28, dtype=np.uint8)[None].repeat(28, 0)))
    transform = TrainTransform(data_config(crop="center", horizontal_flip=0.3), 28)
    flipped = [transform(ramp, np.random.default_rng(seed))[0, 0, 0] > 0 for seed in range(1000)]
    assert abs(np.mean(flipped) - 0.3) < 0.05


def test_padded_crops_shift_by_up_to_the_padding():
    dot = np.zeros((28, 28, 3), np.uint8)
    dot[14, 14] = 255
    transform = TrainTransform(data_config(crop="padded", crop_padding=2, horizontal_flip=0.0), 28)
    picture = DecodedImage(Image.fromarray(dot))
    places = {tuple(np.argwhere(transform(picture, np.random.default_rng(seed))[0])[0]) for seed in range(500)}
    assert places == {(y, x) for y in range(12, 17) for x in range(12, 17)}


def test_normalisation_on_the_device_equals_torchvisions_and_the_hosts():
    from torchvision.transforms import functional as TF

    values = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    pixels = np.random.default_rng(0).integers(256, size=(2, 3, 8, 8), dtype=np.uint8)
    expected = TF.normalize(torch.from_numpy(pixels).float() / 255, values["mean"], values["std"])
    on_device = Normalize(data_config(**values))(stack_images(list(pixels), data_config(**values)))
    floats = data_config(transfer="float32", **values)
    on_host = Normalize(floats)(stack_images(list(pixels), floats))
    torch.testing.assert_close(on_device, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_host, expected, rtol=1e-5, atol=1e-6)
    half = Normalize(data_config(**values)).half()(torch.from_numpy(pixels))
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=4e-3)

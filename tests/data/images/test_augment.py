"""AutoAugment, RandAugment and random erasing: their order, rate, strength and random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers import data_config
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from vit_ipu.data.images.augment import Augment
from vit_ipu.data.images.decode import DecodedImage
from vit_ipu.data.images.transforms import TrainTransform
from vit_ipu.step import Normalize

POLICIES = {"auto": {"auto_augment": "imagenet"}, "rand": {"rand_augment": [2, 9]}, "erasing": {"random_erasing": 1.0}}


def picture(seed=0, side=32):
    """Returns smooth colours, in which a shift or a rotation is visible."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return np.stack([x * 7, y * 5, (x + y + seed) * 3], -1).astype(np.uint8)


def augmented(seed, **values):
    return Augment(data_config(**values))(picture(), np.random.default_rng(seed))


@pytest.mark.parametrize("name", POLICIES)
def test_augmentation_depends_on_the_given_generator_alone(name):
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        found.append([augmented(seed, **POLICIES[name]) for seed in range(20)])
    for first, second in zip(*found):
        assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)
        assert (first == second).all()
    assert len({pixels.tobytes() for pixels in found[0]}) > 5


@pytest.mark.parametrize("name", POLICIES)
def test_global_generators_are_unchanged(name):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    augmented(0, **POLICIES[name])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_global_generators_are_unchanged_when_augmentation_fails():
    def broken(image):
        raise ValueError(torch.rand(1).item())

    augment, before = Augment(data_config(auto_augment="imagenet")), torch.get_rng_state()
    augment._policy = broken
    with pytest.raises(ValueError):
        augment(picture(), np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_augmentation_pixels_and_generator_are_unchanged():
    pixels, rng = picture(), np.random.default_rng(0)
    assert Augment(data_config())(pixels, rng) is pixels
    assert rng.random() == np.random.default_rng(0).random()


def test_auto_augment_equals_torchvisions_on_pil_images_with_grey_corners():
    theirs = AutoAugment(AutoAugmentPolicy.IMAGENET, fill=[128.0] * 3)
    for seed in range(50):
        state = torch.get_rng_state()
        torch.manual_seed(int(np.random.default_rng(seed).integers(1 << 63)))
        expected = np.asarray(theirs(Image.fromarray(picture())))
        torch.set_rng_state(state)
        assert (augmented(seed, auto_augment="imagenet") == expected).all()


@pytest.mark.parametrize("name", ["auto", "rand"])
def test_corners_that_a_rotation_leaves_free_are_grey(name):
    white = np.full((32, 32, 3), 255, np.uint8)
    results = [Augment(data_config(**POLICIES[name]))(white, np.random.default_rng(seed)) for seed in range(60)]
    assert any((pixels[0, 0] == 128).all() or (pixels[0, -1] == 128).all() for pixels in results)


def test_rand_augment_has_the_configs_strength():
    def change(*operations):
        images = [augmented(seed, rand_augment=list(operations)).astype(int) for seed in range(60)]
        return np.mean([np.abs(pixels - picture()).mean() for pixels in images])

    assert 1.5 * change(1, 0) < change(1, 30)
    assert 1.2 * change(1, 9) < change(4, 9)


MEAN = (0.2, 0.4, 0.6)


def erased(pixels):
    return (pixels == [51, 102, 153]).all(-1)


def test_erased_rectangles_are_zero_after_normalisation_to_half_a_byte():
    config = data_config(random_erasing=1.0, mean=list(MEAN), std=[0.25] * 3)
    for seed in range(20):
        pixels = Augment(config)(picture(), np.random.default_rng(seed))
        rows, columns = np.where(erased(pixels))
        inside = erased(pixels)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inside.all()
        assert 0.01 < inside.size / 32**2 < 0.36
        normalised = Normalize(config)(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
        assert normalised[:, torch.from_numpy(erased(pixels))].abs().max() <= 0.5 / 255 / 0.25 + 1e-6


def test_erasing_happens_at_the_configs_rate():
    rate = np.mean([(augmented(seed, random_erasing=0.3) != picture()).any() for seed in range(1000)])
    assert abs(rate - 0.3) < 0.05


def test_erasing_comes_after_the_policy():
    for seed in range(30):
        pixels = augmented(seed, auto_augment="imagenet", random_erasing=1.0, mean=list(MEAN))
        assert erased(pixels).mean() > 0.01, seed


@pytest.mark.parametrize("name", POLICIES)
def test_augmentation_comes_after_crop_and_flip(name):
    image = DecodedImage(Image.fromarray(picture(side=48)))
    for seed in range(10):
        found = TrainTransform(data_config(**POLICIES[name]), 32)(image, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        cropped = TrainTransform(data_config(), 32)(image, rng).transpose(1, 2, 0)
        expected = Augment(data_config(**POLICIES[name]))(np.ascontiguousarray(cropped), rng)
        assert (found == expected.transpose(2, 0, 1)).all()

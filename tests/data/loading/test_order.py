"""Balanced sampling: each class equally often, no image lost, the same from every start and in every process."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import tiny_config, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from loaded_steps import copies, same, training_loader
from packed import run_pack, write_two_classes
from PIL import Image
from torch.utils.data import WeightedRandomSampler

from vit_ipu.data.loading.order import BalancedStream, random_numbers
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import DataError

SKEWED = np.repeat([0, 1, 2, 3], [1, 7, 40, 152])

labels_of_some_classes = st.lists(st.integers(1, 12), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations(np.repeat(np.arange(len(counts)), counts).tolist())
)


@settings(max_examples=60, deadline=None)
@given(labels_of_some_classes, st.integers(0, 3))
def test_classes_and_the_images_of_a_class_come_equally_often(labels, seed):
    labels = np.array(labels)
    stream, epochs = BalancedStream(labels, int(labels.max()) + 1, seed), 4
    entries = stream.at(range(epochs * len(labels)))
    for epoch in range(1, epochs + 1):
        times = np.bincount([index for _, index in entries[: epoch * len(labels)]], minlength=len(labels))
        by_class = np.bincount(labels, weights=times)
        assert np.ptp(by_class) <= 1
        assert all(np.ptp(times[labels == label]) <= 1 for label in set(labels.tolist()))
    assert len(set(entries)) == len(entries)  # so that augmentation differs each time that an image comes
    passes = Counter(index for _, index in entries)
    assert sorted(entries) == sorted((number, index) for index, count in passes.items() for number in range(count))


@settings(max_examples=60, deadline=None)
@given(labels_of_some_classes, st.integers(0, 60), st.integers(1, 40))
def test_the_stream_can_start_anywhere(labels, start, count):
    labels = np.array(labels)
    num_classes = int(labels.max()) + 1
    whole = BalancedStream(labels, num_classes, 5).at(range(start + count))
    assert BalancedStream(labels, num_classes, 5).at(range(start, start + count)) == whole[start:]
    odd = np.arange(start, start + count)[1::2]
    assert BalancedStream(labels, num_classes, 5).at(odd) == [whole[position] for position in odd]


def test_a_frequent_class_continues_in_the_next_epoch():
    stream = BalancedStream(SKEWED, 4, 0)
    epochs = [{index for _, index in stream.at(range(200 * epoch, 200 * epoch + 200))} for epoch in range(4)]
    of_class = [{index for index in epoch if SKEWED[index] == 3} for epoch in epochs]
    assert [len(part) for part in of_class[:3]] == [50, 50, 50]  # the fourth ends a pass and begins the next
    assert len(of_class[0] | of_class[1] | of_class[2]) == 150
    assert len(set().union(*of_class)) == 152


def test_the_order_depends_on_the_seed_and_the_epoch():
    def order(seed, epoch):
        return BalancedStream(SKEWED, 4, seed).at(range(epoch * 200, epoch * 200 + 200))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    labels = [[int(SKEWED[index]) for _, index in order(0, epoch)] for epoch in (0, 1)]
    assert labels[0] != labels[1]
    assert labels[0][:8] != [0, 1, 2, 3, 0, 1, 2, 3]


def test_random_numbers_do_not_depend_on_where_reading_begins():
    whole = random_numbers(3, 1, 0, 40)
    for start in range(12):
        assert random_numbers(3, 1, start, 40).tolist() == whole[start:].tolist()
    assert not set(whole.tolist()) & set(random_numbers(3, 2, 0, 40).tolist())
    assert not set(whole.tolist()) & set(random_numbers(4, 1, 0, 40).tolist())


def test_batches_have_the_classes_of_torchs_weighted_sampler_in_distribution():
    """Compares the mean and the spread of the number of images of each class in batches of 20."""
    num_batches, size = 3000, 20
    ours = [index for _, index in BalancedStream(SKEWED, 4, 0).at(range(num_batches * size))]
    weights = 1 / np.bincount(SKEWED)[SKEWED]
    generator = torch.Generator().manual_seed(0)
    theirs = list(WeightedRandomSampler(weights.tolist(), num_batches * size, generator=generator))
    counts = [
        np.stack([np.bincount(batch, minlength=4) for batch in SKEWED[np.array(drawn)].reshape(num_batches, size)])
        for drawn in (ours, theirs)
    ]
    np.testing.assert_allclose(counts[0].mean(0), 5, atol=0.01)
    np.testing.assert_allclose(counts[0].mean(0), counts[1].mean(0), atol=5 * 1.94 / num_batches**0.5)
    without_replacement = ((200 - 20) / (200 - 1)) ** 0.5  # an epoch of 200 has each class 50 times
    np.testing.assert_allclose(counts[0].std(0), without_replacement * counts[1].std(0), rtol=0.06)
    by_image = [np.bincount(drawn, minlength=200)[SKEWED == 2] for drawn in (ours, theirs)]
    assert by_image[0].mean() == pytest.approx(by_image[1].mean(), rel=0.05)
    assert np.ptp(by_image[0]) <= 1 < np.ptp(by_image[1])  # but no image is left to chance


# ---------------------------------------------------------------------------------------- the loader


def skewed_folder(root, counts=(1, 9, 30)):
    for label, count in enumerate(counts):
        for split in ("train", "val"):
            folder = root / split / "abc"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([label, number]).integers(256, size=(40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(str(folder / f"{number}.png"))
    return root


def folder_config(root, num_classes=3, **data):
    pipeline = {"global_batch_size": 30, "micro_batch_size": 5, "replication_factor": 2}
    chosen = {"source": "imagefolder", "path": str(root), "sampling": "balanced", "num_train": None, "num_eval": None}
    return tiny_config(
        pipeline=pipeline, data={**chosen, "crop": "random_resized", **data}, model={"num_classes": num_classes}
    )


def steps_of(config, start=0, total=4, share=(0, 1)):
    loader = training_loader(config, start, total, share)
    return copies(loader), loader


def test_an_image_that_comes_again_in_an_epoch_is_augmented_differently(tmp_path):
    steps, _ = steps_of(folder_config(skewed_folder(tmp_path)))
    labels = torch.cat([step.labels for step in steps])
    assert labels.bincount().tolist() == [40, 40, 40]
    images = torch.cat([step.images for step in steps])[labels == 0]
    assert len({image.numpy().tobytes() for image in images}) == 40


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_and_the_start_change_nothing(tmp_path, workers):
    root = skewed_folder(tmp_path)
    whole, _ = steps_of(folder_config(root))
    assert same(steps_of(folder_config(root, num_workers=workers))[0], whole)
    assert same(steps_of(folder_config(root, num_workers=workers), start=2)[0], whole[2:])


def test_instances_feed_the_samples_of_their_replicas(tmp_path):
    config = folder_config(skewed_folder(tmp_path))
    whole, first, second = (steps_of(config, share=share)[0] for share in ((0, 1), (0, 2), (1, 2)))
    for step, a, b in zip(whole, first, second):
        together = torch.stack([part.images.reshape(3, 5, 3, 28, 28) for part in (a, b)], dim=1)
        assert torch.equal(together.reshape(step.images.shape), step.images)


def test_samples_are_named_by_their_pass_over_the_class(tmp_path):
    _, loader = steps_of(folder_config(skewed_folder(tmp_path)), total=0)
    samples = [sample for step in range(4) for sample in loader.samples_of(step)]
    rare = [(number, name) for number, _, name in samples if "/a/" in name]
    assert sorted(number for number, _ in rare) == list(range(40))
    assert {name for _, name in rare} == {str(tmp_path / "train" / "a" / "0.png")}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_replaced_by_one_of_its_class(tmp_path, workers):
    skewed_folder(tmp_path)
    for number in range(6):
        (tmp_path / "train" / "b" / f"{number}.png").write_text("no image")
    steps, loader = steps_of(folder_config(tmp_path, on_error="skip", num_workers=workers))
    assert torch.cat([step.labels for step in steps]).bincount().tolist() == [40, 40, 40]
    assert len(loader.skipped) == 6


def test_shards_are_balanced_too(tmp_path):
    root = write_two_classes(tmp_path / "images")
    (root / "train" / "ant" / "1.png").unlink()
    (root / "train" / "ant" / "2.png").unlink()
    run_pack(root, tmp_path / "packed")
    config = folder_config(tmp_path / "packed", num_classes=2, source="shards")
    steps, _ = steps_of(config, total=2)
    assert [step.labels.bincount().tolist() for step in steps] in ([[15, 15], [15, 15]], [[14, 16], [16, 14]])


def test_a_held_out_part_of_a_folder_is_not_drawn(tmp_path):
    skewed_folder(tmp_path, counts=(4, 9, 30))
    config = folder_config(tmp_path / "train", holdout=0.25)
    source = open_source(config.data, config.model, "train")
    drawn = {index for _, index in BalancedStream(source.labels, 3, 42).at(range(10 * len(source)))}
    assert drawn == set(range(len(source)))
    assert np.bincount(source.labels).tolist() == [3, 7, 22]


def test_a_class_without_a_training_image_is_refused(tmp_path):
    write_image_folder(tmp_path, classes=("cat", "dog", "eel"), count=5)
    config = folder_config(tmp_path, num_train=2)
    with pytest.raises(DataError) as caught:
        open_source(config.data, config.model, "train")
    assert str(caught.value).startswith("data.sampling: balanced: there is no training image of the class ")
    assert str(caught.value).endswith(": add images, raise data.num_train if it is set, or remove the key")
    assert len(open_source(config.data, config.model, "eval")) == 15

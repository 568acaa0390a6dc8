"""Weights of classes in the loss: their values, from the counts of the training images."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_config

from vit_ipu.class_balance import class_weights, count_images
from vit_ipu.errors import DataError

LABELS = np.repeat([0, 1, 2], [2, 6, 24])


def weights_of(chosen, sampling="shuffled", labels=LABELS):
    config = tiny_config(
        model={"num_classes": 3},
        data={"source": "generated", "sampling": sampling},
        optim={"class_weights": chosen},
    )
    return class_weights(config, labels, ("ant", "bee", "cow"))


def test_balanced_weights_are_n_over_k_times_the_number_of_images():
    assert weights_of("balanced") == pytest.approx([32 / (3 * 2), 32 / (3 * 6), 32 / (3 * 24)])
    assert np.mean(np.array(weights_of("balanced"))[LABELS]) == pytest.approx(1)
    assert weights_of("balanced", labels=np.arange(3)) == (1, 1, 1)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_weights_of_a_list_keep_their_ratios_and_have_the_mean_1_over_the_images(scale):
    found = weights_of([4.0 * scale, 2.0 * scale, 1.0 * scale])
    assert np.array(found) / found[2] == pytest.approx([4, 2, 1])
    assert np.mean(np.array(found)[LABELS]) == pytest.approx(1)


def test_the_mean_is_over_the_samples_that_are_drawn():
    assert weights_of([4.0, 2.0, 1.0], "balanced") == pytest.approx([12 / 7, 6 / 7, 3 / 7])


def test_without_the_key_there_are_no_weights():
    assert weights_of(None) is None


def test_a_class_without_images_has_no_balanced_weight():
    with pytest.raises(
        DataError, match=r"^optim.class_weights: balanced: there is no training image of the class bee:"
    ):
        weights_of("balanced", labels=np.array([0, 2, 2]))
    assert weights_of([1.0, 1.0, 2.0], labels=np.array([0, 2])) == pytest.approx([2 / 3, 2 / 3, 4 / 3])


def test_several_classes_without_images_are_counted():
    with pytest.raises(DataError, match=r"^x: there is no training image of the class bee \(and 1 more\): add images"):
        count_images(np.zeros(3, np.int64), ("ant", "bee", "cow"), wanted_by="x")
    assert count_images(LABELS, ("ant", "bee", "cow"), wanted_by="x").tolist() == [2, 6, 24]

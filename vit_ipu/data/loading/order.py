"""Order of the training images: a stream of samples over all epochs, each of as many samples as there are images.

A stream maps positions to (pass, index): the image, and how often it has come before. Both depend only on the labels,
the seed and the position, so that loading can start anywhere, and any process can load any part.
"""

from __future__ import annotations

from typing import List, Sequence, Union

import numpy as np
from typing_extensions import Protocol

from vit_ipu.config import Config
from vit_ipu.data.loading.workers import Entry
from vit_ipu.data.sources.base import Source

Positions = Union[Sequence[int], np.ndarray]


class Stream(Protocol):
    """Samples of the training in their order."""

    def at(self, positions: Positions) -> List[Entry]:
        """Returns the (pass, index) of each position."""


class TrainingStream:
    """The shuffled images of epoch 0, then those of epoch 1, and so on; a pass is an epoch."""

    def __init__(self, num_images: int, seed: int) -> None:
        self._num_images, self._seed = num_images, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, positions: Positions) -> List[Entry]:
        epochs, places = np.divmod(np.asarray(positions, np.int64), self._num_images)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            indices[of_epoch] = self._order_of(epoch)[places[of_epoch]]
        return list(zip(epochs.tolist(), indices.tolist()))

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = shuffled(self._num_images, self._seed, epoch)
        return self._order


class BalancedStream:
    """Samples of which each class has equally many: in any number of epochs, their counts differ by at most one.

    Before each epoch is shuffled, the stream takes one image of each class in turn. The images of a class are a stream
    of their own: a first pass over all of them, shuffled, then a second one, and so on, across the ends of epochs. So
    at the end of each epoch the images of a class have come equally often (to at most one), and none is lost, but a
    frequent class may need several epochs for a pass.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, seed: int) -> None:
        """`labels` (n,) has each of the classes."""
        by_class = np.argsort(labels, kind="stable")
        self._images = np.split(by_class, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])
        self._num_images, self._seed = len(labels), seed
        self._epoch, self._samples = -1, np.empty((0, 2), np.int64)

    def at(self, positions: Positions) -> List[Entry]:
        epochs, places = np.divmod(np.asarray(positions, np.int64), self._num_images)
        found = np.empty((len(places), 2), np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            found[of_epoch] = self._samples_of(epoch)[places[of_epoch]]
        return [(number, index) for number, index in found.tolist()]

    def _samples_of(self, epoch: int) -> np.ndarray:
        """Returns the pass and the index (n, 2) of each sample of an epoch, in order."""
        if epoch != self._epoch:
            self._epoch, first = epoch, epoch * self._num_images
            samples = np.empty((self._num_images, 2), np.int64)
            for label in range(len(self._images)):
                turns = np.arange((label - first) % len(self._images), self._num_images, len(self._images))
                if len(turns):
                    start = (first + int(turns[0])) // len(self._images)
                    samples[turns] = self._of_class(label, start, start + len(turns))
            self._samples = samples[shuffled(self._num_images, self._seed, epoch)]
        return self._samples

    def _of_class(self, label: int, start: int, stop: int) -> np.ndarray:
        """Returns the pass and the index (stop - start, 2) of the samples `start` to `stop` - 1 of a class."""
        images = self._images[label]
        passes = range(start // len(images), -(-stop // len(images)))
        ranks = random_numbers(self._seed, label, passes.start * len(images), passes.stop * len(images))
        order = ranks.reshape(len(passes), -1).argsort(axis=1, kind="stable")
        samples = np.column_stack([np.repeat(np.array(passes), len(images)), images[order].ravel()])
        begin = start - passes.start * len(images)
        return samples[begin : begin + stop - start]


def training_stream(source: Source, config: Config) -> Stream:
    """Returns the order that data.sampling chooses."""
    if config.data.sampling == "balanced":
        return BalancedStream(source.labels, len(source.classes), config.run.seed)
    return TrainingStream(len(source), config.run.seed)


def shuffled(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order (n,) of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def random_numbers(seed: int, label: int, start: int, stop: int) -> np.ndarray:
    """Returns the random numbers `start` to `stop` - 1 (uint64) of a class: each depends only on its place.

    Philox makes them from a counter, of which one step gives four numbers.
    """
    block = start // 4
    key = np.array([seed, label + 1], np.uint64)  # SampleGenerators have the keys (seed, 0)
    numbers: np.ndarray = np.random.Philox(key=key, counter=block).random_raw(stop - 4 * block)
    return numbers[start - 4 * block :]


def like(source: Source, index: int, rng: np.random.Generator) -> int:
    """Draws the index of an image of the same class as the image at `index`."""
    same = np.flatnonzero(source.labels == source.labels[index])
    return int(same[rng.integers(len(same))])

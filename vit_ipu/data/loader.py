"""Host steps for training and chunks for evaluation, the same whatever the number of workers.

Training images form one stream: the shuffled images of epoch 0, then those of epoch 1, and so on. Host step k
holds the stream's samples k*S to (k+1)*S - 1, S = samples_per_step, ordered [D][G][R][m]. Order and augmentation
depend only on (seed, epoch, index), so the stream can be entered anywhere.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_ipu.config import Config, DataConfig
from vit_ipu.data.sources import DataError, Source
from vit_ipu.data.transforms import EvalTransform, TrainTransform, normalize_on_host

CHUNK = 256
"""Images that a worker loads at a time."""

Sample = Union[Tuple["np.ndarray", int], DataError]
"""Pixels and label, or why there are none: torch would bury an exception of a worker in its traceback."""


@dataclass(frozen=True)
class HostBatch:
    """What one host step consumes, ordered [D][G][R][m] along dim 0.

    images: (n, 3, S, S), uint8 or float32; labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class TrainingStream:
    """Which image, and in which epoch, stands at a position of the stream."""

    def __init__(self, num_images: int, seed: int) -> None:
        self._num_images, self._seed = num_images, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, positions: Iterable[int]) -> List[Tuple[int, int]]:
        """(epoch, index) of each position."""
        return [self._entry(int(position)) for position in positions]

    def _entry(self, position: int) -> Tuple[int, int]:
        epoch, place = divmod(position, self._num_images)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._num_images)
        return epoch, int(self._order[place])


class TrainingLoader:
    """Yields the host steps start_step, start_step + 1, ... total_steps - 1."""

    def __init__(
        self, source: Source, config: Config, positions: "np.ndarray", *, start_step: int, total_steps: int
    ) -> None:
        """`positions`: those of a host step that this process feeds (BatchPlan.share)."""
        self._stream = TrainingStream(len(source), config.run.seed)
        self._positions = positions
        self._samples_per_step = config.pipeline.global_batch_size * config.pipeline.device_iterations
        self._steps = range(start_step, total_steps)
        self._samples, self._config = _TrainingSamples(source, config), config.data

    def __iter__(self) -> Iterator[HostBatch]:
        chunks: List[HostBatch] = []
        chunks_per_step = -(-len(self._positions) // CHUNK)
        for chunk in _chunks(self._samples, self._config, batch_sampler=self._indices()):
            chunks.append(chunk)
            if len(chunks) == chunks_per_step:
                yield _join(chunks)
                chunks = []

    def _indices(self) -> "Iterator[List[Tuple[int, int]]]":
        for step in self._steps:
            entries = self._stream.at(step * self._samples_per_step + self._positions)
            for start in range(0, len(entries), CHUNK):
                yield entries[start : start + CHUNK]


def evaluation_loader(source: Source, config: Config) -> Iterator[HostBatch]:
    """Yields every image of the source once, in order, in chunks of at most CHUNK."""
    return _chunks(_EvaluationSamples(source, config), config.data, batch_size=CHUNK)


def _chunks(samples: "Dataset[Any]", config: DataConfig, **batching: Any) -> Iterator[HostBatch]:
    """The chunks of torch's DataLoader, in order. Raises the DataError of a sample, also where a worker met it."""
    loader = DataLoader(
        samples,
        num_workers=config.num_workers,
        collate_fn=_Collate(config),
        worker_init_fn=_ignore_signals,
        **batching,
    )
    for chunk in loader:
        if isinstance(chunk, DataError):
            raise chunk
        yield chunk


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM are the main process's business; a worker ends when it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _TrainingSamples(Dataset):  # type: ignore[type-arg]
    def __init__(self, source: Source, config: Config) -> None:
        self._source, self._seed = source, config.run.seed
        self._transform = TrainTransform(config.data, config.model.image_size)

    def __getitem__(self, entry: Tuple[int, int]) -> Sample:
        epoch, index = entry
        rng = np.random.default_rng([self._seed, epoch, index])
        try:
            return self._transform(self._source.image(index), rng), int(self._source.labels[index])
        except DataError as error:
            return error


class _EvaluationSamples(Dataset):  # type: ignore[type-arg]
    def __init__(self, source: Source, config: Config) -> None:
        self._source = source
        self._transform = EvalTransform(config.data, config.model.image_size)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self._transform(self._source.image(index)), int(self._source.labels[index])
        except DataError as error:
            return error


class _Collate:
    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def __call__(self, samples: List[Sample]) -> Union[HostBatch, DataError]:
        failed = [sample for sample in samples if isinstance(sample, DataError)]
        if failed:
            return failed[0]
        pixels, labels = zip(*samples)  # type: ignore[misc]
        return HostBatch(stack_images(pixels, self._config), torch.tensor(labels))


def stack_images(pixels: Sequence["np.ndarray"], config: DataConfig) -> Tensor:
    """Pixels (3, S, S) of uint8 as one tensor (n, 3, S, S), in the form in which images travel."""
    stacked = np.stack(pixels)
    return torch.from_numpy(normalize_on_host(stacked, config) if config.transfer == "float32" else stacked)


def _join(chunks: List[HostBatch]) -> HostBatch:
    if len(chunks) == 1:
        return chunks[0]
    return HostBatch(torch.cat([c.images for c in chunks]), torch.cat([c.labels for c in chunks]))

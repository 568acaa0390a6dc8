"""Loaders of host steps for training and of chunks for evaluation; the number of workers does not change them.

Training images form one stream (order.py), such as the shuffled images of epoch 0, then those of epoch 1, and so on.
Host step k holds the stream's samples k*S to (k+1)*S - 1, where S = samples_per_step, ordered [D][G][R][m].
Augmentation depends only on (seed, pass, index), so loading can start at any host step. A pass is the epoch, or with
data.sampling balanced the pass over the images of the class.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Dict, Generator, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from vit_ipu.backends.contract import HostBatch
from vit_ipu.config import Config, DataConfig
from vit_ipu.data.images.transforms import EvalTransform, TrainTransform, normalize_on_host
from vit_ipu.data.loading.buffers import Buffer
from vit_ipu.data.loading.order import like, training_stream
from vit_ipu.data.loading.workers import Entry, Skipped, Steps, WorkerPool, fill_in_process
from vit_ipu.data.sources.base import Source
from vit_ipu.errors import DataError
from vit_ipu.mixing import mixing_of_step

Batches = Generator[HostBatch, None, None]
"""Loaded batches. Close them if you stop before the last one, so that Ctrl-C can interrupt the end of the workers."""
CHUNK = 256
"""Least number of images that an evaluation predicts at a time."""
AHEAD_BYTES = 1 << 30
"""Bytes of the host steps that workers may fill ahead of the consumed step; one step ahead is always allowed."""
_MAX_AHEAD = 3
_TRIES = 100
"""Number of images that are tried for one sample before loading fails."""


class TrainingLoader:
    """Yields the host steps start_step, start_step + 1, ... total_steps - 1."""

    def __init__(
        self,
        source: Source,
        config: Config,
        positions: np.ndarray,
        *,
        start_step: int,
        total_steps: int,
        page_lock: bool = True,
        sends_first: bool = False,
        float_format: torch.dtype = torch.float32,
    ) -> None:
        """`positions`: the positions within a host step that this process loads (BatchPlan.share).

        `page_lock`: let a GPU, if there is one, read the workers' buffers directly. `sends_first`: the device stops
        this process's threads (Backend.blocks_threads). `float_format`: the format of images that the host normalises.
        """
        self._source, self._config, self._float_format = source, config, float_format
        self._stream = training_stream(source, config)
        self._positions = positions
        self._samples_per_step = config.pipeline.global_batch_size * config.pipeline.device_iterations
        self._steps = range(start_step, total_steps)
        self._for_pool = {"page_lock": page_lock, "sends_first": sends_first}
        self.skipped: Dict[str, None] = {}
        """Messages about the images that could not be read so far, in order; empty unless data.on_error is skip."""

    def __iter__(self) -> Batches:
        fill = TrainingFill(self._source, self._config)
        samples, steps, dtype = len(self._positions), len(self._steps), _dtype(self._config, self._float_format)
        with _Filler(fill, self._config, dtype, samples, steps, **self._for_pool) as filler, closing(
            filler.filled(self._entries())
        ) as filled:
            for step, whole in zip(self._steps, filled):
                self.skipped.update(dict.fromkeys(whole.skipped))
                yield HostBatch(whole.images, whole.labels, mixing_of_step(self._config, step, self._positions))

    def samples_of(self, step: int) -> List[Tuple[int, int, str]]:
        """Returns the pass, the index and the name of each sample of a host step, also of those of other processes."""
        start = step * self._samples_per_step
        entries = self._stream.at(range(start, start + self._samples_per_step))
        return [(epoch, index, self._source.name(index)) for epoch, index in entries]

    def _entries(self) -> Iterator[List[Entry]]:
        for step in self._steps:
            yield self._stream.at(step * self._samples_per_step + self._positions)


class EvaluationLoader:
    """Yields every image of the source once, in order, in chunks; the last chunk may be smaller.

    The size of a chunk is the first multiple of `multiple_of` that is at least CHUNK. Used as a context manager, it
    keeps its worker processes for the next time that the images are asked for: starting a dozen of them takes a second,
    in which a GPU evaluates thousands of images.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        *,
        multiple_of: int = 1,
        sends_first: bool = False,
        float_format: torch.dtype = torch.float32,
        part: Tuple[int, int] = (0, 1),
    ) -> None:
        """`sends_first`: as of TrainingLoader.

        `part` (i, n): yields only every n-th chunk, from the i-th one on; all n parts have equally many.

        A part may therefore end with a chunk without images.
        """
        count, chunk = len(source), -(-CHUNK // multiple_of) * multiple_of
        chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
        first, every = part
        self._steps, self._most = chunks[first::every], -(-len(chunks) // every)
        self._side, self._dtype = config.model.image_size, _dtype(config, float_format)
        self._filler = _Filler(
            _EvaluationFill(source, config),
            config,
            self._dtype,
            min(chunk, count),
            len(self._steps),
            sends_first=sends_first,
        )
        self._keeps_workers = False
        self.skipped: Dict[str, None] = {}
        """Messages, in order, about unreadable images, which are in no chunk; empty unless data.on_error is skip."""

    def __enter__(self) -> EvaluationLoader:
        self._keeps_workers = True
        return self

    def __exit__(self, *exc: Any) -> None:
        self._keeps_workers = False
        self._filler.close()

    @property
    def has_workers(self) -> bool:
        """Whether worker processes run, or none are needed, so that none will be started."""
        return self._filler.has_workers

    def __iter__(self) -> Batches:
        try:
            yield from self._batches()
        finally:
            if not self._keeps_workers:
                self._filler.close()

    def _batches(self) -> Batches:
        if self._steps:
            with closing(self._filler.filled([(0, index) for index in step] for step in self._steps)) as filled_steps:
                # In this order, so that the end of filling is reached.
                for filled, step in zip(filled_steps, self._steps):
                    self.skipped.update(dict.fromkeys(filled.skipped))
                    images, labels, indices = filled.images, filled.labels, torch.arange(step.start, step.stop)
                    if filled.skipped:
                        images, labels, indices = (tensor[filled.labels >= 0] for tensor in (images, labels, indices))
                    yield HostBatch(images, labels, indices=indices)
        for _ in range(self._most - len(self._steps)):
            none = torch.empty(0, dtype=torch.int64)
            yield HostBatch(torch.empty(0, 3, self._side, self._side, dtype=self._dtype), none, indices=none)


def _dtype(config: Config, float_format: torch.dtype) -> torch.dtype:
    return torch.uint8 if config.data.transfer == "uint8" else float_format


class _Filler:
    """Fills series of steps in data.num_workers processes, or in this process if data.num_workers is 0.

    The processes start with the first series, and again if a series was not taken to its end, or if one has died since.
    """

    def __init__(
        self,
        fill: _Fill,
        config: Config,
        dtype: torch.dtype,
        samples: int,
        steps: int,
        *,
        page_lock: bool = True,
        sends_first: bool = False,
    ) -> None:
        """A series has at most `steps` steps of at most `samples` images. The rest is as of WorkerPool."""
        self._fill, self._config, self._dtype = fill, config, dtype
        self._samples, self._num_steps = samples, steps
        self._for_pool = {"page_lock": page_lock, "sends_first": sends_first}
        self._pool: Optional[WorkerPool] = None

    def __enter__(self) -> _Filler:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    @property
    def has_workers(self) -> bool:
        return self._config.data.num_workers == 0 or (self._pool is not None and self._pool.can_continue)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def filled(self, entries: Iterable[List[Entry]]) -> Steps:
        """Yields the steps, whose tensors may be overwritten once the next step or series is requested.

        A series that has not been taken to its end raises RuntimeError at its next step, if there are processes.
        """
        if self._config.data.num_workers == 0:
            return fill_in_process(entries, self._fill, self._buffer)
        if not self.has_workers:
            self.close()
            workers = self._config.data.num_workers
            self._pool = WorkerPool(self._fill, self._buffers(), workers, **self._for_pool)
        assert self._pool is not None
        return self._pool.filled(entries)

    def _buffers(self) -> List[Buffer]:
        size = self._samples * 3 * self._config.model.image_size**2 * torch.empty(0, dtype=self._dtype).element_size()
        ahead = max(1, min(_MAX_AHEAD, AHEAD_BYTES // max(size, 1), self._num_steps))
        return [self._buffer(self._samples, shared=True) for _ in range(ahead + 1)]

    def _buffer(self, count: int, *, shared: bool = False) -> Buffer:
        return Buffer.of(count, self._config.model.image_size, self._dtype, shared=shared)


class _Fill:
    """Loads images into their places in a buffer; raises DataError for an unreadable image or skips the image."""

    def __init__(self, source: Source, config: Config) -> None:
        self._source, self._data = source, config.data

    def __call__(self, buffer: Buffer, start: int, entries: Sequence[Entry]) -> List[Skipped]:
        skipped: List[Skipped] = []
        images, labels = buffer.images.numpy(), buffer.labels.numpy()
        for place, (epoch, index) in enumerate(entries, start):
            pixels = images[place] if images.dtype == np.uint8 else np.zeros(images.shape[1:], np.uint8)
            labels[place] = self._sample(epoch, index, pixels, skipped)
            if images.dtype != np.uint8:
                images[place] = normalize_on_host(pixels, self._data)
        return skipped

    def _sample(self, epoch: int, index: int, pixels: np.ndarray, skipped: List[Skipped]) -> int:
        """Writes an image to `pixels` (3, S, S) and returns the label of the image."""
        raise NotImplementedError

    def _skip(self, error: DataError, skipped: List[Skipped]) -> None:
        if self._data.on_error == "raise":
            raise DataError(f"{error} (data.on_error: skip continues without it)") from None
        skipped.append(str(error))


class TrainingFill(_Fill):
    def __init__(self, source: Source, config: Config) -> None:
        super().__init__(source, config)
        self._transform = TrainTransform(config.data, config.model.image_size)
        self._generators = SampleGenerators(config.run.seed)

    def _sample(self, epoch: int, index: int, pixels: np.ndarray, skipped: List[Skipped]) -> int:
        """Loads the image or, if the image cannot be read, another image drawn from (seed, pass, index).

        With balanced sampling, the other image is of the same class.
        """
        rng = self._generators.of(epoch, index)
        for _ in range(_TRIES):
            try:
                self._transform(self._source.picture(index), rng, pixels)
                return int(self._source.labels[index])
            except DataError as error:
                self._skip(error, skipped)
                last = error
            is_balanced = self._data.sampling == "balanced"
            index = like(self._source, index, rng) if is_balanced else int(rng.integers(len(self._source)))
        raise DataError(f"{_TRIES} images one after the other could not be read, the last: {last}")


class _EvaluationFill(_Fill):
    def __init__(self, source: Source, config: Config) -> None:
        super().__init__(source, config)
        self._transform = EvalTransform(config.data, config.model.image_size)

    def _sample(self, epoch: int, index: int, pixels: np.ndarray, skipped: List[Skipped]) -> int:
        """Loads the image; returns the label -1 if the image is skipped."""
        try:
            self._transform(self._source.picture(index), pixels)
            return int(self._source.labels[index])
        except DataError as error:
            self._skip(error, skipped)
            return -1


class SampleGenerators:
    """Random number generators of the samples, each determined by (seed, epoch, index).

    Philox (Salmon et al., SC 2011) computes its numbers from a key and a counter, so that one generator is set to a
    sample's counter in 2 microseconds; making a new generator from a seed sequence takes 10 to 20.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed))
        self._state: Any = self._generator.bit_generator.state  # before any draw

    def of(self, epoch: int, index: int) -> np.random.Generator:
        """Returns the sample's generator, which is valid until the next call."""
        self._state["state"]["counter"][:] = (0, 0, index, epoch)  # the lower two count a sample's 2**128 draws
        self._generator.bit_generator.state = self._state
        return self._generator


def stack_images(pixels: Sequence[np.ndarray], config: DataConfig) -> Tensor:
    """Stacks pixels (3, S, S) of uint8 into a tensor (n, 3, S, S), normalised if config.transfer is float32."""
    stacked = np.stack(pixels)
    return torch.from_numpy(normalize_on_host(stacked, config) if config.transfer == "float32" else stacked)

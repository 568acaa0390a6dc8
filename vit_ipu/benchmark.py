"""Throughput of a config's training step on a device."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Iterator, List, Optional, Tuple

import torch

from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Backend, Device, HostBatch, Instances
from vit_ipu.config import Config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.mixing import mixing_of_step
from vit_ipu.optim import learning_rate
from vit_ipu.pipeline import BatchPlan


@dataclass(frozen=True)
class Throughput:
    """Throughput that a benchmark measured; each time is that of a complete host step."""

    images_per_second: float
    """Images per second of the median host step."""
    quartiles: Tuple[float, float]
    """Images per second of the host steps at the upper and at the lower quartile of speed."""
    seconds: Tuple[float, ...]
    """Seconds of each timed host step."""
    samples_per_step: int
    compile_seconds: float
    """Seconds by which the first host step, which includes compilation, exceeds the median host step."""


def benchmark(
    config: Config,
    device: Device,
    *,
    steps: int,
    burn_in: int,
    real_data: bool = False,
    cache: Optional[ListingCache] = None,
) -> Throughput:
    """Times `steps` host steps after `burn_in` untimed ones.

    Every step takes the same batch of random pixels and labels, which is made in advance. With `real_data` every
    step takes the next batch from the config's source, and its time includes loading. Raises ConfigError if the device
    cannot run the config.
    """
    require_runnable_on(config, device, allow_synthetic=True)
    with open_backend(config, device) as backend:
        if real_data:
            batches = _real_batches(config, backend, cache)
        else:
            batches = cycle([random_batch(config, backend.instances, backend.float_format)])
        times = _step_times(backend, batches, 1 + burn_in + steps, learning_rate(0, 1, config.optim))
    timed = times[1 + burn_in :]
    samples = BatchPlan.of(config).samples_per_step
    median = statistics.median(timed)
    fast, slow = _quartiles(timed)
    return Throughput(samples / median, (samples / fast, samples / slow), tuple(timed), samples, times[0] - median)


def random_batch(config: Config, instances: Instances, float_format: torch.dtype = torch.float32) -> HostBatch:
    """Returns the samples of a host step that this process feeds, as random pixels and labels."""
    positions = instances.positions(BatchPlan.of(config))
    count, side = len(positions), config.model.image_size
    generator = torch.Generator().manual_seed(config.run.seed)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    if config.data.transfer == "float32":
        images = (images.float() / 127.5 - 1).to(float_format)
    labels = torch.randint(config.model.num_classes, (count,), generator=generator)
    return HostBatch(images, labels, mixing_of_step(config, 0, positions))


def _real_batches(config: Config, backend: Backend, cache: Optional[ListingCache]) -> Iterator[HostBatch]:
    source = open_source(config.data, config.model, "train", cache=cache)
    positions = backend.instances.positions(BatchPlan.of(config))
    return iter(
        TrainingLoader(source, config, positions, start_step=0, total_steps=1 << 40, float_format=backend.float_format)
    )


def _step_times(backend: Backend, batches: Iterator[HostBatch], count: int, rate: float) -> List[float]:
    """Returns the seconds of each of `count` steps; a step ends when its losses are on the host."""
    times = []
    start = time.perf_counter()
    for batch in islice(batches, count):
        backend.train_step(batch, rate)
        end = time.perf_counter()
        times.append(end - start)
        start = end
    return times


def _quartiles(times: List[float]) -> Tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high

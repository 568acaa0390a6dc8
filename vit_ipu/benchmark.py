"""Throughput of a config's training step on a device, and where its time goes."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch

from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Backend, Device, HostBatch, Instances
from vit_ipu.backends.native.distributed import num_processes
from vit_ipu.class_balance import class_weights
from vit_ipu.config import Config
from vit_ipu.data.loading.loader import Batches, TrainingLoader
from vit_ipu.data.sources.base import Source
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.mixing import mixing_of_step
from vit_ipu.model_cost import training_flops
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
    parts: Dict[str, float]
    """Seconds of the parts of a host step, each waited for: the batch, its way to the device, the passes over it and
    the update of the weights. Together they may exceed a host step, in which parts overlap. On IPUs only the batch."""
    matrix_rate: Optional[float]
    """Operations per second of a large matrix product on this device, in the number format of the run; None on IPUs."""
    share_of_matrix_rate: Optional[float]
    """Share of it that the matrix products of the model's forward and backward passes reach."""
    peak_bytes: Optional[int]
    """Most bytes of the device's memory that were in use at a time; None if the device is not a GPU."""


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
    rate = learning_rate(0, 1, config.optim)
    source = open_source(config.data, config.model, "train", cache=cache) if real_data else None
    with open_backend(config, device, class_weights=_class_weights(config, source)) as backend, ExitStack() as stack:
        batches: Iterator[HostBatch]
        if source is not None:
            batches = stack.enter_context(closing(_real_batches(config, backend, source)))
        else:
            batches = cycle([random_batch(config, backend.instances, backend.float_format)])
        times, waits = _step_times(backend, batches, 1 + burn_in + steps, rate)
        parts = {"batch": statistics.median(waits[1 + burn_in :]), **backend.time_parts(next(batches), rate)}
        peak_bytes = torch.cuda.max_memory_allocated() if device.kind == "cuda" else None
    timed = times[1 + burn_in :]
    samples = BatchPlan.of(config).samples_per_step
    median = statistics.median(timed)
    fast, slow = _quartiles(timed)
    most = matrix_rate(config, device) if device.kind in ("cuda", "cpu") else None
    needed_only = device.kind in ("cuda", "cpu")
    operations = 2 * training_flops(config.model, config.optim.freeze, needed_only=needed_only) * samples
    return Throughput(
        samples / median,
        (samples / fast, samples / slow),
        tuple(timed),
        samples,
        times[0] - median,
        parts,
        most,
        None if most is None else operations / median / (most * num_processes()),
        peak_bytes,
    )


def matrix_rate(config: Config, device: Device) -> float:
    """Returns the operations per second of a large matrix product, in the number format that the config computes in."""
    dtype = getattr(torch, config.precision.resolve_compute(device.kind))
    size = 8192 if device.kind == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device.tensors, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(13):
        start = time.perf_counter()
        a @ b
        if device.kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


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


def _class_weights(config: Config, source: Optional[Source]) -> Optional[Tuple[float, ...]]:
    """Returns the weights of the classes in the loss; random labels have all classes equally often."""
    if source is not None:
        return class_weights(config, source.labels, source.classes)
    classes = [str(label) for label in range(config.model.num_classes)]
    return class_weights(config, np.arange(len(classes)), classes)


def _real_batches(config: Config, backend: Backend, source: Source) -> Batches:
    positions = backend.instances.positions(BatchPlan.of(config))
    return iter(
        TrainingLoader(
            source,
            config,
            positions,
            start_step=0,
            total_steps=1 << 40,
            sends_first=backend.blocks_threads,
            float_format=backend.float_format,
        )
    )


def _step_times(
    backend: Backend, batches: Iterator[HostBatch], count: int, rate: float
) -> Tuple[List[float], List[float]]:
    """Returns the seconds of each of `count` steps, and those of waiting for its batch.

    A step is timed from the end of the one before. A GPU may still compute it at its end; then it has ended the one
    before.
    """
    times: List[float] = []
    waits: List[float] = []
    start = time.perf_counter()
    for batch in islice(batches, count):
        arrived = time.perf_counter()
        result = backend.train_step(batch, rate)
        if not times:
            result.wait()  # so that the time of the first step is that of compiling too
        end = time.perf_counter()
        times.append(end - start)
        waits.append(arrived - start)
        start = end
    return times, waits


def _quartiles(times: List[float]) -> Tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high

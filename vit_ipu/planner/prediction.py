"""Prediction for a config: memory, time, throughput with its interval, the verdict, and advice if it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import isqrt
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.pipeline import place_units
from vit_ipu.planner.calibration import interval
from vit_ipu.planner.hardware import Hardware
from vit_ipu.planner.memory import IpuMemory, fits_together, memory_per_ipu
from vit_ipu.planner.time import UpdateTime, update_time


@dataclass(frozen=True)
class Prediction:
    """Predicted memory of each IPU and time of an update, of one config on one kind of IPU."""

    config: Config
    hardware: Hardware
    memory: Sequence[IpuMemory]
    time: UpdateTime

    @property
    def fits(self) -> Optional[bool]:
        """True or False, or None if the estimate's uncertainty contains the IPUs' memory."""
        return fits_together(self.memory)

    @property
    def images_per_second(self) -> float:
        return self.config.pipeline.global_batch_size / self.time.total

    @property
    def interval(self) -> Tuple[float, float]:
        """Lowest and highest images per second that the comparison with published figures allows."""
        return interval(self.images_per_second)

    @property
    def seconds_to_finish(self) -> Optional[float]:
        """Seconds of the run's updates, without evaluations; None if the number of images is not in the config."""
        num_train = self.config.data.num_train
        if self.config.run.updates is None and num_train is None:
            return None
        return self.config.total_updates(num_train or 1) * self.time.total

    def as_json(self) -> Dict[str, Any]:
        """Returns the prediction as values for JSON: seconds, bytes and images per second."""
        low, high = self.interval
        units = place_units(self.config.layers_per_ipu)
        return {
            "hardware": self.hardware.name,
            "predicted": {
                "images_per_second": self.images_per_second,
                "low": low,
                "high": high,
                "seconds_per_update": self.time.total,
                "seconds_to_finish": self.seconds_to_finish,
                "limited_by": self.time.limited_by,
            },
            "fits": self.fits,
            "ipus": [
                self._ipu(ipu, memory, seconds.by_kind, units[ipu])
                for ipu, (memory, seconds) in enumerate(zip(self.memory, self.time.ipus))
            ],
            "advice": [] if self.fits else advice(self.config, self.hardware),
        }

    def _ipu(self, ipu: int, memory: IpuMemory, seconds: Dict[str, float], units: Sequence[str]) -> Dict[str, Any]:
        low, high = memory.range
        return {
            "ipu": ipu,
            "units": list(units),
            "memory_bytes": memory.by_kind,
            "memory_low": low,
            "memory_high": high,
            "memory_capacity": memory.capacity,
            "fits": memory.fits,
            "seconds": sum(seconds.values()),
            "seconds_by_kind": seconds,
            "utilisation": sum(seconds.values()) * self.time.num_micro_batches / self.time.total,
        }


def predict(config: Config, hardware: Hardware) -> Prediction:
    """Returns the prediction for training."""
    return Prediction(config, hardware, memory_per_ipu(config, hardware), update_time(config, hardware))


def advice(config: Config, hardware: Hardware) -> List[str]:
    """Returns single changes of the config that make it fit, or else what to try."""

    def fitting(changes: Iterator[Tuple[str, Config]]) -> Iterator[str]:
        return (text for text, changed in changes if fits_together(memory_per_ipu(changed, hardware)))

    found = [*fitting(_changes(config)), *islice(fitting(_smaller(config)), 1)]
    return found or ["no single setting makes it fit for sure: try --search, or more IPUs a replica"]


def _changes(config: Config) -> Iterator[Tuple[str, Config]]:
    """Returns changes that lower memory, each as a setting and the changed config."""
    pipeline = config.pipeline
    if pipeline.recompute != "every_block":
        yield _with(config, recompute="every_block")
    if pipeline.replication_factor > 1 and not pipeline.replicated_tensor_sharding:
        yield _with(config, replicated_tensor_sharding=True)
    if pipeline.optimizer_state == "on_chip":
        yield _with(config, optimizer_state="off_chip")
    if config.precision.accumulation == "float32":
        precision = config.precision.model_copy(update={"accumulation": "float16"})
        yield "precision.accumulation=float16", config.model_copy(update={"precision": precision})


def _smaller(config: Config) -> Iterator[Tuple[str, Config]]:
    """Returns the config with each smaller micro-batch, the largest first."""
    pipeline = config.pipeline
    share = pipeline.global_batch_size // pipeline.replication_factor
    small = [size for size in range(1, isqrt(share) + 1) if share % size == 0]
    smallest = 2 if config.data.mixes else 1
    for size in sorted({*small, *(share // size for size in small)}, reverse=True):
        if smallest <= size < pipeline.micro_batch_size:
            yield _with(config, micro_batch_size=size)


def _with(config: Config, **changes: Any) -> Tuple[str, Config]:
    (key, value), *_ = changes.items()
    text = f"pipeline.{key}={str(value).lower() if isinstance(value, bool) else value}"
    return text, config.model_copy(update={"pipeline": config.pipeline.model_copy(update=changes)})

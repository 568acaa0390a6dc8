"""Time of a weight update: the work of each IPU in a cycle of the pipeline, the update, and what limits it.

F is the number of forward stages, G gradient accumulation, R replication factor. An update takes G+2F-2 cycles, each as
long as the slowest IPU's work (`vit_ipu.pipeline.num_cycles`), and then the gradients are reduced over the replicas and
the optimizer steps. Work on the chip is divided by the fitted share; links and the host are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.pipeline import num_cycles
from vit_ipu.planner.hardware import Hardware
from vit_ipu.planner.products import Formats, product_cost
from vit_ipu.planner.program import (
    Stage,
    formats_of,
    gradient_bytes,
    input_bytes,
    recomputes,
    replicas_of_step,
    stages_of,
    state_bytes,
    stream_bytes,
    trained_parameters,
    unit_work,
    weight_bytes,
)
from vit_ipu.planner.work import LayerWork, Work

ON_CHIP = ("matrix products", "exchange", "elementwise", "starting operations")
LINKS, HOST = "links between IPUs", "host link"
OPTIMIZER_PASSES = {"sgd": 4, "adam": 12, "adamw": 12, "lamb": 16}
"""Elementwise passes over the parameters in an optimizer step (popart sgd2decompose.cpp, adamdecompose.cpp; LAMB adds
two norms)."""
ACCUMULATION_PASSES = 1


@dataclass(frozen=True)
class IpuTime:
    """Seconds that an IPU works in one cycle of the pipeline, by kind of work."""

    by_kind: Dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_kind.values())


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of one weight update: `num_cycles` cycles of the slowest IPU, the reduction and the optimizer step."""

    ipus: Tuple[IpuTime, ...]
    num_cycles: int
    num_micro_batches: int
    is_pipelined: bool
    reduction: float
    optimizer: float

    @property
    def cycle(self) -> float:
        """Seconds of a cycle: of the slowest IPU, or of all IPUs in turn if they are not pipelined."""
        seconds = [ipu.total for ipu in self.ipus]
        return max(seconds) if self.is_pipelined else sum(seconds)

    @property
    def total(self) -> float:
        return self.num_cycles * self.cycle + self.reduction + self.optimizer

    @property
    def limited_by(self) -> str:
        """Names what takes the largest part of an update: an IPU and its kind of work, or idle cycles."""
        slowest = max(range(len(self.ipus)), key=lambda ipu: self.ipus[ipu].total)
        kind, seconds = max(self.ipus[slowest].by_kind.items(), key=lambda item: item[1])
        parts = {
            f"{kind} of IPU {slowest}": seconds * self.num_micro_batches,
            "ramp-up and ramp-down of the pipeline": (self.num_cycles - self.num_micro_batches) * self.cycle,
            "reduction of the gradients over the replicas": self.reduction,
            "optimizer step": self.optimizer,
        }
        return max(parts, key=lambda name: parts[name])


def update_time(config: Config, hardware: Hardware) -> UpdateTime:
    """Returns the time of a weight update."""
    stages = stages_of(config.layers_per_ipu)
    is_pipelined = config.pipeline.execution == "pipelined"
    micro_batches = config.pipeline.gradient_accumulation
    return UpdateTime(
        ipus=tuple(stage_time(config, hardware, stage) for stage in stages),
        num_cycles=num_cycles(len(stages), micro_batches) if is_pipelined else micro_batches,
        num_micro_batches=micro_batches,
        is_pipelined=is_pipelined,
        reduction=_reduction_seconds(config, hardware, stages),
        optimizer=_optimizer_seconds(config, hardware, stages),
    )


def stage_time(config: Config, hardware: Hardware, stage: Stage) -> IpuTime:
    """Returns the time of a stage's work on one micro-batch: forward, recomputation, backward and transfers."""
    formats, again = formats_of(config, stage), recomputes(config, stage)
    accumulation = Work(elements=ACCUMULATION_PASSES * trained_parameters(config, stage))
    by_kind = seconds_of_work(accumulation, formats, hardware)
    for unit, count in stage.units.items():
        if count:
            for kind, seconds in _layer_seconds(unit_work(config, unit), again, formats, hardware).items():
                by_kind[kind] += count * seconds
    by_kind[LINKS] = stream_bytes(config) / hardware.neighbour_bytes_per_second if stage.num_ipus > 1 else 0.0
    by_kind[HOST] = _host_seconds(config, hardware, stage.num_ipus, sum(by_kind.values())) if stage.is_first else 0.0
    return IpuTime(by_kind)


@lru_cache(maxsize=None)
def _layer_seconds(layer: LayerWork, again: bool, formats: Formats, hardware: Hardware) -> Dict[str, float]:
    forward, backward = layer
    return seconds_of_work(forward.plus(backward, *([forward] if again else [])), formats, hardware)


def seconds_of_work(work: Work, formats: Formats, hardware: Hardware) -> Dict[str, float]:
    """Returns the seconds of work on one chip by kind, with the fitted share.

    An elementwise pass takes `cycles_per_vector` for each vector of a tile, and an operation `steps_per_operation`
    steps of `step_cycles`.
    """
    costs = [product_cost(product, formats, hardware) for product in work.products]
    vectors = work.elements * formats.element_bytes / hardware.vector_bytes
    cycles = (
        sum(cost.compute_cycles for cost in costs),
        sum(cost.exchange_cycles for cost in costs),
        vectors / hardware.tiles * hardware.cycles_per_vector,
        work.operations * hardware.steps_per_operation * hardware.step_cycles,
    )
    return {kind: count / (hardware.clock_hertz * hardware.fitted_share) for kind, count in zip(ON_CHIP, cycles)}


def _host_seconds(config: Config, hardware: Hardware, num_ipus: int, computing: float) -> float:
    """Returns the seconds that the first IPU waits for a micro-batch of images.

    Replicas of fewer IPUs than a gateway's share its bandwidth. Overlapped transfers cost only the part that is longer
    than the computation.
    """
    pipeline = config.pipeline
    if pipeline.synthetic_data:
        return 0.0
    sharing = min(max(hardware.gateway_ipus // num_ipus, 1), pipeline.replication_factor)
    seconds = sharing * pipeline.micro_batch_size * input_bytes(config) / hardware.host_bytes_per_second
    return seconds if pipeline.overlap_io == "none" else max(seconds - computing, 0.0)


def _reduction_seconds(config: Config, hardware: Hardware, stages: Sequence[Stage]) -> float:
    """Returns the time to add up gradients over the replicas.

    Sharded optimizers gather the updated weights instead of the second half of the gradients (popart: ReplicatedReduce-
    Scatter and ReplicatedAllGather).
    """
    replicas = config.pipeline.replication_factor
    sent = gradient_bytes(config) or weight_bytes(config)
    second = weight_bytes(config) if config.pipeline.replicated_tensor_sharding else sent
    num_bytes = max(trained_parameters(config, stage) for stage in stages) * (sent + second) / 2
    return ring_seconds(num_bytes, replicas, len(stages) * replicas, hardware)


def ring_seconds(num_bytes: float, replicas: int, ipus: int, hardware: Hardware) -> float:
    """Returns the time of an all-reduce in a ring: each replica sends 2(R-1)/R of the bytes.

    Source: P. Patarasuk and X. Yuan, Bandwidth optimal all-reduce algorithms, 2009.
    """
    is_linked = ipus <= hardware.link_domain_ipus
    rate = hardware.neighbour_bytes_per_second if is_linked else hardware.gateway_bytes_per_second
    return 2 * num_bytes * (replicas - 1) / replicas / rate


def _optimizer_seconds(config: Config, hardware: Hardware, stages: Sequence[Stage]) -> float:
    """Returns the time of the optimizer step of the IPU with the most parameters; replicas share a sharded step."""
    parameters = max(trained_parameters(config, stage) for stage in stages) / replicas_of_step(config)
    streamed = state_bytes(config) if config.pipeline.optimizer_state == "off_chip" else 0
    return step_seconds(parameters, OPTIMIZER_PASSES[config.optim.optimizer], streamed, hardware)


def step_seconds(parameters: float, passes: int, streamed_bytes: int, hardware: Hardware) -> float:
    """Returns the time of an optimizer step in float32 on `parameters` of an IPU.

    `streamed_bytes`: of each parameter's state, read from Streaming Memory and written back.
    """
    step = seconds_of_work(Work(elements=parameters * passes), Formats(4, 4, 1.0), hardware)
    return sum(step.values()) + 2 * parameters * streamed_bytes / hardware.streaming_bytes_per_second

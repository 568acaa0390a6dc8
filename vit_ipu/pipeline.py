"""Pipeline: units of each IPU, batch arithmetic, and timetable. Pure functions; nothing here imports torch.

A unit is a placeable piece of the model: `embed`, `blocks.0` ... `blocks.N-1`, `head`. F is the number of
forward stages (one an IPU), D device_iterations, G gradient_accumulation, R replication_factor, m the
micro-batch size. Sources name files of graphcore/poptorch (sdk-release-3.4) and graphcore/popart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from vit_ipu.config import Config
from vit_ipu.errors import ConfigError
from vit_ipu.text import counted

# -------------------------------------------------------------------------------------- placement


def place_units(layers_per_ipu: Sequence[int]) -> Tuple[Tuple[str, ...], ...]:
    """Returns the units of each IPU of a replica, in the order of execution.

    The first IPU also gets `embed` and the last IPU `head`; with 0 layers, an IPU has only `embed` or `head`.
    """
    units: List[List[str]] = []
    start = 0
    for count in layers_per_ipu:
        units.append([f"blocks.{index}" for index in range(start, start + count)])
        start += count
    units[0].insert(0, "embed")
    units[-1].append("head")
    return tuple(tuple(unit) for unit in units)


def first_module(unit: str) -> str:
    """Returns the path, in `vit_ipu.model.ViT`, of the module at which a unit begins."""
    return {"embed": "patch_embed", "head": "norm"}.get(unit, unit)


def num_ipus(config: Config) -> int:
    """Returns the number of IPUs that the run takes: IPUs per replica x replicas."""
    return len(config.layers_per_ipu) * config.pipeline.replication_factor


# -------------------------------------------------------------------------------- batch arithmetic


@dataclass(frozen=True)
class BatchPlan:
    """Division of the samples of one host step, ordered [D][G][R][m]."""

    micro_batch_size: int
    gradient_accumulation: int
    replication_factor: int
    device_iterations: int

    @classmethod
    def of(cls, config: Config) -> BatchPlan:
        """Returns the plan of training."""
        pipeline = config.pipeline
        return cls(
            micro_batch_size=pipeline.micro_batch_size,
            gradient_accumulation=pipeline.gradient_accumulation,
            replication_factor=pipeline.replication_factor,
            device_iterations=pipeline.device_iterations,
        )

    @classmethod
    def of_evaluation(cls, config: Config) -> BatchPlan:
        """Returns the plan of inference on IPUs, which has no accumulation."""
        inference = config.for_evaluation()
        return cls(
            micro_batch_size=inference.pipeline.micro_batch_size,
            gradient_accumulation=1,
            replication_factor=inference.pipeline.replication_factor,
            device_iterations=config.run.evaluation_device_iterations or busy_iterations(inference),
        )

    @property
    def global_batch_size(self) -> int:
        """Number of samples per weight update."""
        return self.micro_batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def samples_per_step(self) -> int:
        """Number of samples per host step."""
        return self.global_batch_size * self.device_iterations

    @property
    def equation(self) -> str:
        """Equation of the global batch, as text."""
        return (
            f"global batch {self.global_batch_size:,} = micro-batch {self.micro_batch_size} x accumulation "
            f"{self.gradient_accumulation} x replicas {self.replication_factor}"
        )

    def share(self, instance: int, num_instances: int) -> np.ndarray:
        """Returns the positions in a host step, ordered [D][G][R][m], of the samples that one host process feeds.

        Each of `num_instances` processes owns consecutive replicas, as poprun assigns them. Raises ConfigError if the
        replicas do not divide evenly over the processes.
        """
        if self.replication_factor % num_instances:
            raise ConfigError(
                f"pipeline.replication_factor {self.replication_factor} is not a multiple of the {num_instances} "
                "instances of poprun: change --num-instances"
            )
        local = self.replication_factor // num_instances
        shape = (-1, self.replication_factor, self.micro_batch_size)
        positions = np.arange(self.samples_per_step).reshape(shape)
        return positions[:, instance * local : (instance + 1) * local].reshape(-1)

    def share_of_micro_batches(self, process: int, num_processes: int) -> np.ndarray:
        """Returns the positions in a host step of the samples of one of torchrun's processes.

        Each process takes consecutive micro-batches of every update. Raises ConfigError if the micro-batches do not
        divide evenly over the processes.
        """
        count = self.gradient_accumulation * self.replication_factor
        if count % num_processes:
            raise ConfigError(
                f"an update has {counted(count, 'micro-batch', 'micro-batches')} ({self.equation}), "
                f"which {counted(num_processes, 'process', 'processes')} of torchrun "
                "cannot share evenly: change --nproc-per-node, or pipeline.micro_batch_size"
            )
        local = count // num_processes
        positions = np.arange(self.samples_per_step).reshape(-1, count, self.micro_batch_size)
        return positions[:, process * local : (process + 1) * local].reshape(-1)


# -------------------------------------------------------------------------------------- timetable


@dataclass(frozen=True)
class Slot:
    """One piece of work: IPU `ipu` passes micro-batch `micro_batch` forward or backward in `cycle`."""

    cycle: int
    ipu: int
    micro_batch: int
    backward: bool


def num_stages(num_ipus: int) -> int:
    """Returns the stages of training, 2F-1: the last forward stage also runs backward (CompilerImpl.cpp:478-495)."""
    return 2 * num_ipus - 1


def num_cycles(num_ipus: int, gradient_accumulation: int) -> int:
    """Returns the cycles of a weight update, G+2F-2, with ramp-up and ramp-down (popart pipeline.cpp:2278-2334)."""
    return gradient_accumulation + num_stages(num_ipus) - 1


def utilisation(num_ipus: int, gradient_accumulation: int) -> float:
    """Returns the share of cycles in which an IPU works, G/(G+2F-2): the upper bound due to ramp-up and ramp-down."""
    return gradient_accumulation / num_cycles(num_ipus, gradient_accumulation)


def busy_iterations(config: Config) -> int:
    """Returns the fewest device iterations with which a pipeline in inference works more than 90 % of its cycles.

    An IPU works in D of the D+F-1 cycles of a call, and D/(D+F-1) > 0.9 means D > 9(F-1). Stages that take turns
    (sharded) gain nothing from more iterations.
    """
    stages = len(config.layers_per_ipu)
    return 9 * (stages - 1) + 1 if config.pipeline.execution == "pipelined" else 1


def timetable(num_ipus: int, gradient_accumulation: int) -> List[Slot]:
    """Returns the work of every IPU in every cycle of one weight update.

    Stage s handles micro-batch c - s in cycle c; the backward pass of stage i is stage 2(F-1)-i on the IPU of stage i
    (popart/docs/notes/transforms/pipelining.md:60-130).
    """
    slots = []
    for cycle in range(num_cycles(num_ipus, gradient_accumulation)):
        for ipu in range(num_ipus):
            for stage, backward in ((ipu, False), (2 * (num_ipus - 1) - ipu, True)):
                if 0 <= cycle - stage < gradient_accumulation:
                    slots.append(Slot(cycle, ipu, cycle - stage, backward))
    return slots

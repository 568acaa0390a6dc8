"""The simulator's account of a compiled model, as data, JSON and a Chrome trace."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Tuple

from vit_ipu.simulator.cost.schedule import BACKWARD, FORWARD, RECOMPUTE, Schedule, Slot, chrome_trace


@dataclass(frozen=True)
class StageAccount:
    """Account of a forward stage with its backward pass; FLOPs, bytes sent and working memory are per micro-batch.

    The stash holds `stashed_micro_batches` times `tensors_stashed` tensors. The peaks include the stash and the
    micro-batch in work.
    """

    stage: int
    ipu: int
    num_operations: int
    flops_forward: int
    flops_recompute: int
    flops_backward: int
    stashed_micro_batches: int
    tensors_stashed: int
    stash_bytes: int
    tensors_stashed_without_recomputation: int
    stash_bytes_without_recomputation: int
    peak_activation_bytes: int
    peak_activation_bytes_without_recomputation: int
    bytes_sent_forward: int
    bytes_sent_backward: int


@dataclass(frozen=True)
class IpuAccount:
    """Account of one IPU: all its stages together, and its weights."""

    ipu: int
    stages: Tuple[int, ...]
    num_parameters: int
    parameter_bytes: int
    buffer_bytes: int
    optimizer_state_bytes: int
    flops_forward: int
    flops_recompute: int
    flops_backward: int
    tensors_stashed: int
    stash_bytes: int
    stash_bytes_without_recomputation: int
    peak_activation_bytes: int
    peak_activation_bytes_without_recomputation: int
    bytes_sent_forward: int
    bytes_sent_backward: int


@dataclass(frozen=True)
class SimulationReport:
    """The costs of a program that the simulator can count without an IPU, for one replica.

    `recomputation`: whether the program recomputes; `stash_bytes`, `peak_activation_bytes` and `flops_recompute` are
    the values with recomputation in either case.
    """

    training: bool
    pipelined: bool
    recomputation: bool
    num_forward_stages: int
    num_stages: int
    gradient_accumulation: int
    device_iterations: int
    replication_factor: int
    cycles_per_run: int
    """The cycles of one weight update in training, of one call in inference."""
    cycles_per_call: int
    utilisation: float
    stages: Tuple[StageAccount, ...]
    ipus: Tuple[IpuAccount, ...]
    timetable: Tuple[Slot, ...]
    schedule: Schedule
    simulated: bool = True
    unit_of_time: str = "cycles of the pipeline, not seconds"

    def to_dict(self) -> Dict[str, Any]:
        """Returns plain values, ready for JSON; the timetable is of one weight update, or of one call of inference."""
        values = asdict(self)
        del values["schedule"]
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def chrome_trace(self) -> Dict[str, Any]:
        """Returns trace events of one call: a process per IPU, 1 ms for a pipeline cycle."""
        updates = self.device_iterations if self.training else 1
        return chrome_trace(self.schedule, [_flops_of(stage) for stage in self.stages], updates)

    def write_chrome_trace(self, path: Any) -> None:
        """Writes a file that opens in https://ui.perfetto.dev and in chrome://tracing."""
        with open(path, "w") as file:
            json.dump(self.chrome_trace(), file)


def _flops_of(stage: StageAccount) -> Dict[str, int]:
    return {FORWARD: stage.flops_forward, RECOMPUTE: stage.flops_forward, BACKWARD: stage.flops_backward}


def account_of_ipu(ipu: int, stages: List[StageAccount], weights: Dict[str, int]) -> IpuAccount:
    """Sums over the stages of an IPU; of memory that only lives while its stage works, takes the largest."""
    return IpuAccount(
        ipu=ipu,
        stages=tuple(stage.stage for stage in stages),
        flops_forward=sum(stage.flops_forward for stage in stages),
        flops_recompute=sum(stage.flops_recompute for stage in stages),
        flops_backward=sum(stage.flops_backward for stage in stages),
        tensors_stashed=sum(stage.tensors_stashed for stage in stages),
        stash_bytes=sum(stage.stash_bytes for stage in stages),
        stash_bytes_without_recomputation=sum(stage.stash_bytes_without_recomputation for stage in stages),
        peak_activation_bytes=_peak([(s.stash_bytes, s.peak_activation_bytes) for s in stages]),
        peak_activation_bytes_without_recomputation=_peak(
            [(s.stash_bytes_without_recomputation, s.peak_activation_bytes_without_recomputation) for s in stages]
        ),
        bytes_sent_forward=sum(stage.bytes_sent_forward for stage in stages),
        bytes_sent_backward=sum(stage.bytes_sent_backward for stage in stages),
        **weights,
    )


def _peak(stages: List[Tuple[int, int]]) -> int:
    """Returns the stashes of all stages, plus the most that one stage needs beyond its own stash."""
    return sum(stash for stash, _ in stages) + max((peak - stash for stash, peak in stages), default=0)

"""The timetable of a pipeline: which stage works on which micro-batch in which cycle, and its Chrome trace.

F is the number of forward stages, G gradient accumulation, D device iterations. Training passes a micro-batch
through 2F-1 stages: stage s takes micro-batch c-s in cycle c, stage 2(F-1)-i is the backward pass of forward stage
i, and the last forward stage runs its backward pass in the same cycle as its forward pass
(popart/docs/notes/transforms/pipelining.md:60-130). The pipeline fills and drains once per weight update in training,
once per call in inference. Times are in cycles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

FORWARD, RECOMPUTE, BACKWARD = "forward", "recompute", "backward"
RAMP_UP, STEADY, RAMP_DOWN = "ramp-up", "steady", "ramp-down"


@dataclass(frozen=True)
class Slot:
    """A unit of work: in `cycle`, forward stage `stage` on `ipu` runs `micro_batch` forward, again, or backward."""

    cycle: int
    ipu: int
    stage: int
    micro_batch: int
    work: str
    ramp: str


@dataclass(frozen=True)
class Schedule:
    """The order of work on the IPUs of one replica.

    `stage_ipus`: the IPU of each forward stage; `micro_batches`: G in training, D in inference. Stages that are not
    `pipelined` work one at a time (sharded execution).
    """

    stage_ipus: Sequence[int]
    micro_batches: int
    training: bool
    pipelined: bool = True
    recomputes: bool = False

    @property
    def num_stages(self) -> int:
        """The number of stages: 2F-1 in training, F in inference."""
        forward = len(self.stage_ipus)
        return 2 * forward - 1 if self.training else forward

    @property
    def num_cycles(self) -> int:
        """The number of cycles, with ramps: G+2F-2 per weight update, D+F-1 per call of inference.

        Source: popart pipeline.cpp:2278-2334.
        """
        if self.pipelined:
            return self.micro_batches + self.num_stages - 1
        return self.micro_batches * self.num_stages

    @property
    def utilisation(self) -> float:
        """Share of the cycles in which a stage works, if all cycles take the same time."""
        return self.micro_batches / self.num_cycles

    def stashed_micro_batches(self, stage: int) -> int:
        """Returns the number of micro-batches whose activations a forward stage holds.

        2(F-1-i)+1, and 0 for the last forward stage (pipeline.cpp:1477).
        """
        later = len(self.stage_ipus) - 1 - stage
        return 2 * later + 1 if self.training and self.pipelined and later else 0

    def cycle_of(self, stage: int, micro_batch: int) -> int:
        """Returns the cycle in which a stage, counted with the backward stages, works on a micro-batch."""
        return micro_batch + stage if self.pipelined else micro_batch * self.num_stages + stage

    def ramp(self, cycle: int) -> str:
        """Tells whether the pipeline is filling, steady or draining in a cycle."""
        if not self.pipelined:
            return STEADY
        if cycle < self.num_stages - 1:
            return RAMP_UP
        return STEADY if cycle < self.micro_batches else RAMP_DOWN

    def slots(self) -> List[Slot]:
        """Returns all work of one weight update, or of one call of inference, sorted by cycle and stage."""
        slots = []
        for stage, ipu in enumerate(self.stage_ipus):
            for micro_batch in range(self.micro_batches):
                for passed, work in self.work_of(stage):
                    cycle = self.cycle_of(passed, micro_batch)
                    slots.append(Slot(cycle, ipu, stage, micro_batch, work, self.ramp(cycle)))
        return sorted(slots, key=lambda slot: (slot.cycle, slot.stage))

    def work_of(self, stage: int) -> List[Tuple[int, str]]:
        """Returns a forward stage's work for a micro-batch: at which of the 2F-1 stages, and the kind of work."""
        passes = [(stage, FORWARD)]
        if self.training:
            backward = 2 * (len(self.stage_ipus) - 1) - stage
            passes += [(backward, RECOMPUTE)] if self.recomputes and backward != stage else []
            passes += [(backward, BACKWARD)]
        return passes


# ---------------------------------------------------------------------------------------- Chrome trace

MICROSECONDS_PER_CYCLE = 1000
"""The length at which a cycle is drawn: an IPU's true time is not known here."""

_UPDATE_LANE = 3
_LANES = {FORWARD: 0, RECOMPUTE: 1, BACKWARD: 2}


def chrome_trace(schedule: Schedule, flops: Sequence[Dict[str, int]], num_updates: int = 1) -> Dict[str, Any]:
    """Returns the schedule as trace events for Perfetto or chrome://tracing.

    There is a process per IPU and a thread per kind of work. `flops`: the FLOPs of each forward stage, by kind of work.
    The IPU with the most FLOPs fills a cycle, and the work of the other IPUs is drawn in proportion. Format: "Trace
    Event Format", Google, 2016.
    """
    events = _names(schedule)
    period = (schedule.num_cycles + bool(schedule.training)) * MICROSECONDS_PER_CYCLE
    scale = MICROSECONDS_PER_CYCLE / max(_busiest(schedule, flops), 1)
    for update in range(num_updates):
        events += _work(schedule, flops, scale, update * period)
        if schedule.training:
            events += _weight_updates(schedule, update, (update + 1) * period - MICROSECONDS_PER_CYCLE)
    other = {"simulated": True, "unit": "1 ms stands for one pipeline cycle; it is not a time on an IPU"}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _names(schedule: Schedule) -> List[Dict[str, Any]]:
    events = []
    lanes = dict(_LANES, **{"weight update": _UPDATE_LANE}) if schedule.training else {FORWARD: 0}
    for ipu in sorted(set(schedule.stage_ipus)):
        events.append(_metadata("process_name", ipu, 0, f"IPU {ipu} (simulated)"))
        events += [_metadata("thread_name", ipu, lane, name) for name, lane in lanes.items()]
    return events


def _metadata(kind: str, ipu: int, lane: int, name: str) -> Dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": ipu, "tid": lane, "ts": 0, "args": {"name": name}}


def _busiest(schedule: Schedule, flops: Sequence[Dict[str, int]]) -> int:
    """Returns the FLOPs of the IPU with the most FLOPs in a full cycle."""
    of_ipu: Dict[int, int] = {}
    for stage, ipu in enumerate(schedule.stage_ipus):
        of_ipu[ipu] = of_ipu.get(ipu, 0) + sum(flops[stage][work] for _, work in schedule.work_of(stage))
    return max(of_ipu.values())


def _work(schedule: Schedule, flops: Sequence[Dict[str, int]], scale: float, start: int) -> List[Dict[str, Any]]:
    events = []
    busy_until: Dict[int, float] = {}
    for slot in schedule.slots():
        begin = max(busy_until.get(slot.ipu, 0.0), float(start + slot.cycle * MICROSECONDS_PER_CYCLE))
        duration = max(flops[slot.stage][slot.work] * scale, 1.0)
        busy_until[slot.ipu] = begin + duration
        events.append(
            {
                "ph": "X",
                "name": f"{slot.work} {slot.micro_batch}",
                "cat": f"{slot.work},{slot.ramp}",
                "pid": slot.ipu,
                "tid": _LANES[slot.work],
                "ts": round(begin, 3),
                "dur": round(duration, 3),
                "args": {
                    "cycle": slot.cycle,
                    "micro_batch": slot.micro_batch,
                    "stage": slot.stage,
                    "phase": slot.ramp,
                    "flops": flops[slot.stage][slot.work],
                },
            }
        )
    return events


def _weight_updates(schedule: Schedule, update: int, start: int) -> List[Dict[str, Any]]:
    """Returns events a quarter of a cycle long, after the pipeline has drained."""
    return [
        {
            "ph": "X",
            "name": f"weight update {update}",
            "cat": "weight update",
            "pid": ipu,
            "tid": _UPDATE_LANE,
            "ts": start,
            "dur": MICROSECONDS_PER_CYCLE // 4,
            "args": {"update": update},
        }
        for ipu in sorted(set(schedule.stage_ipus))
    ]

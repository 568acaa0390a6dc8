"""Performance counters and latencies of a call, from the schedule of its pipeline.

PopTorch gives seconds; here the unit is a cycle of the pipeline, and transfers between host and IPU take no time. The
counters therefore show a latency in pipeline stages, not an IPU's speed.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Sequence, Tuple

from vit_ipu.simulator.cost.schedule import Schedule
from vit_ipu.simulator.enums import OutputMode
from vit_ipu.simulator.options.output_modes import returned_rounds

Counters = Dict[str, List[List[float]]]
"""Maps an event to a list per input or output: the cycles of the micro-batches, in the order [round][replica]."""

Latency = Tuple[float, float, float]
"""Minimum, maximum and mean."""

NOTHING: Counters = {"input": [[]], "input_complete": [[]], "output": [[]], "output_complete": [[]]}
"""The counters before the first call."""


class Call(NamedTuple):
    """Transfers of a call: `rounds` micro-batches per replica, 0 for synthetic data, and the outputs of `mode`."""

    rounds: int
    replicas: int
    num_inputs: int
    num_outputs: int
    mode: OutputMode
    return_period: int

    def returned(self) -> Sequence[int]:
        """Returns the rounds whose outputs the host receives."""
        return returned_rounds(self.rounds, self.mode, self.return_period)


def perf_counters(schedule: Schedule, call: Call) -> Counters:
    """Returns the cycles in which each micro-batch enters the first stage and has left the last forward stage."""
    last_stage = len(schedule.stage_ipus) - 1
    entered = [_cycle(schedule, 0, index) for index in range(call.rounds) for _ in range(call.replicas)]
    left = [_cycle(schedule, last_stage, index) + 1 for index in call.returned() for _ in range(call.replicas)]
    inputs = [list(entered) for _ in range(call.num_inputs)] or [[]]
    outputs = [list(left) for _ in range(call.num_outputs)] or [[]]
    return {"input": inputs, "input_complete": inputs, "output": outputs, "output_complete": outputs}


def total_cycles(schedule: Schedule, rounds: int) -> int:
    """Returns the cycles of a complete call: training drains the pipeline before every update."""
    return rounds // schedule.micro_batches * schedule.num_cycles


def latency(counters: Counters, start: str, end: str) -> Latency:
    """Returns the latency from the first tensor's `start` to the last tensor's `end`.

    Several inputs to one output count from the earliest input.
    """
    begun = [min(cycles) for cycles in zip(*counters[start])]
    ended = [max(cycles) for cycles in zip(*counters[end])]
    if not begun or not ended:
        return 0.0, 0.0, 0.0
    group = len(begun) // len(ended)
    spans = [finish - min(begun[i * group : (i + 1) * group]) for i, finish in enumerate(ended)]
    return min(spans), max(spans), sum(spans) / len(spans)


def _cycle(schedule: Schedule, stage: int, index: int) -> float:
    run, micro_batch = divmod(index, schedule.micro_batches)
    return float(run * schedule.num_cycles + schedule.cycle_of(stage, micro_batch))

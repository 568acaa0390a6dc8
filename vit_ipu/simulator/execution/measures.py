"""Measures of a compiled program: memory, work and traffic of each IPU, counters and cycles."""

from __future__ import annotations

from vit_ipu.simulator.cost.account import schedule_of, simulation_report
from vit_ipu.simulator.cost.counters import Counters, perf_counters, total_cycles
from vit_ipu.simulator.cost.schedule import Schedule
from vit_ipu.simulator.cost.simulation_report import SimulationReport
from vit_ipu.simulator.execution.program import Program
from vit_ipu.simulator.options.options import Options


class Measures:
    """The measures of one program."""

    def __init__(self, program: Program, options: Options) -> None:
        self._program, self._options = program, options

    def report(self) -> SimulationReport:
        """Returns memory, FLOPs and bytes sent to other IPUs, for each IPU, and the timetable."""
        updater = self._program.updater
        return simulation_report(self._program.trace, self._options, updater.state if updater is not None else None)

    def cycles(self) -> int:
        """Returns the number of pipeline cycles in a call; a real IPU counts clock cycles."""
        return total_cycles(self._schedule(), self._program.rounds)

    def counters(self) -> Counters:
        """Returns when inputs enter and outputs leave in a call, in pipeline cycles (see counters.py)."""
        return perf_counters(self._schedule(), self._program.transfers())

    def _schedule(self) -> Schedule:
        return schedule_of(self._program.trace, self._options)

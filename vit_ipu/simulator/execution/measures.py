"""What can be measured of a compiled program: memory, work and traffic of each IPU, counters and cycles."""

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
        """Accounts per IPU for memory, FLOPs, bytes that cross to others, and the timetable."""
        updater = self._program.updater
        return simulation_report(self._program.trace, self._options, updater.state if updater is not None else None)

    def cycles(self) -> int:
        """Counts the cycles of the pipeline in a call, where an IPU counts those of its clock."""
        return total_cycles(self._schedule(), self._program.rounds)

    def counters(self) -> Counters:
        """Tells when inputs enter and outputs leave in a call, in cycles of the pipeline (see counters.py)."""
        return perf_counters(self._schedule(), self._program.transfers())

    def _schedule(self) -> Schedule:
        return schedule_of(self._program.trace, self._options)

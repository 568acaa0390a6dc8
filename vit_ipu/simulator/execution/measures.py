"""What an executor tells of its program: memory, work and traffic of each IPU, counters, latencies, tensors."""

from __future__ import annotations

from typing import List, Optional

from torch import Tensor

from vit_ipu.simulator.cost.account import schedule_of, simulation_report
from vit_ipu.simulator.cost.counters import NOTHING, Counters, Latency, latency, perf_counters, total_cycles
from vit_ipu.simulator.cost.schedule import Schedule
from vit_ipu.simulator.cost.simulation_report import SimulationReport
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.execution.program import Program
from vit_ipu.simulator.options.options import Options


class Measures:
    """A part of PoplarExecutor; `_has_run`: the program has been called."""

    _options: Options
    _program: Optional[Program]
    _has_run: bool

    def simulation_report(self) -> SimulationReport:
        """Per IPU: memory, FLOPs, bytes that cross to others, and the timetable. Not a method of PopTorch's."""
        program = self._compiled()
        state = program.updater.state if program.updater is not None else None
        return simulation_report(program.trace, self._options, state)

    def getTensorNames(self) -> List[str]:
        """The names of tensors that can be anchored, and of inputs, loss and optimizer attributes."""
        assert self._program is not None, "Model must be compiled before calling getTensorNames"
        return self._program.tensor_names()

    def getAnchoredTensor(self, short_name: str) -> Tensor:
        """An anchored tensor of the last call. Raises AssertionError if none has this name."""
        anchored = self._program.anchored if self._program is not None else {}
        assert short_name in anchored, f"No tensor with name {short_name} found."
        return anchored[short_name]

    def cycleCount(self) -> int:
        """Cycles of the pipeline in the last call, where an IPU counts those of its clock."""
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise error("Cycle count logging is disabled. Please set option logCycleCount to True to enable.")
        if not self._has_run:
            raise error("Please run the model at least once before obtaining cycle count.")
        return total_cycles(self._schedule(), self._compiled().rounds)

    def getPerfCounters(self) -> Counters:
        """When inputs entered and outputs left in the last call, in cycles of the pipeline (see counters.py)."""
        if self._program is None or not self._has_run:
            return NOTHING
        return perf_counters(self._schedule(), self._program.transfers())

    def getHostIpuLatency(self) -> Latency:
        """Zero: transfers take no cycle here."""
        return latency(self.getPerfCounters(), "input", "input_complete")

    def getComputeLatency(self) -> Latency:
        """Minimum, maximum and mean cycles from a complete input to its output."""
        return latency(self.getPerfCounters(), "input_complete", "output")

    def getIpuHostLatency(self) -> Latency:
        """Zero: transfers take no cycle here."""
        return latency(self.getPerfCounters(), "output", "output_complete")

    def getLatency(self) -> Latency:
        """Minimum, maximum and mean cycles from an input to its complete output."""
        return latency(self.getPerfCounters(), "input", "output_complete")

    def _schedule(self) -> Schedule:
        return schedule_of(self._compiled().trace, self._options)

    def _compiled(self) -> Program:
        if self._program is None:
            raise error("Model has not been compiled or has been destroyed.")
        return self._program

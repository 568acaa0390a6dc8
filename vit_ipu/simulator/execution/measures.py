"""What an executor tells about its compiled program: memory and work of each IPU, anchors, counters and cycles."""

from __future__ import annotations

from datetime import timedelta
from typing import List, Optional

from torch import Tensor

from vit_ipu.simulator.cost.account import schedule_of, simulation_report
from vit_ipu.simulator.cost.counters import NOTHING, Counters, Latency, latency, perf_counters, total_cycles
from vit_ipu.simulator.cost.simulation_report import SimulationReport
from vit_ipu.simulator.errors import error
from vit_ipu.simulator.execution.program import Program
from vit_ipu.simulator.options.options import Options


class MeasuredExecutor:
    """The part of an executor that reads its compiled program, which PoplarExecutor compiles and runs."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._program: Optional[Program] = None
        self._has_run = False
        self._seconds_to_compile = 0.0

    # --------------------------------------------------------------------------------- compilation

    @property
    def _executable(self) -> Optional[Program]:
        """PopTorch's private name for the executable, None if there is none; programs test whether there is one."""
        return self._program

    def _compiled(self) -> Program:
        if self._program is None:
            raise error("Model has not been compiled or has been destroyed.")
        return self._program

    def isCompiled(self) -> bool:
        """Tells whether there is an executable."""
        return self._program is not None

    def compilationTime(self) -> timedelta:
        """Returns how long tracing took, which does not predict how long a real compilation takes."""
        if not self.isCompiled():
            raise error("Please compile the model before obtaining compilation time.")
        if not self._options._show_compilation_progress_bar:
            raise error("Please set showCompilationProgressBar option to obtain compilation time.")
        return timedelta(seconds=self._seconds_to_compile)

    def simulation_report(self) -> SimulationReport:
        """Returns memory, FLOPs and bytes sent to other IPUs, for each IPU, and the timetable.

        PopTorch lacks this method.
        """
        program = self._compiled()
        updater = program.updater
        return simulation_report(program.trace, self._options, updater.state if updater is not None else None)

    def _debugGetPopartIR(self) -> str:
        raise NotImplementedError("_debugGetPopartIR is not simulated: the simulator compiles no PopART graph")

    # ------------------------------------------------------------------------------------- tensors

    def num_clipped(self) -> int:
        """Returns how many finite values were too large for float16 since compilation, and so clipped to 65504.

        With exact numerics nothing is clipped. PopTorch lacks this method.
        """
        return self._compiled().num_clipped

    def getTensorNames(self) -> List[str]:
        """Returns the names of tensors that can be anchored, and of inputs, loss and optimizer attributes."""
        assert self._program is not None, "Model must be compiled before calling getTensorNames"
        return self._program.tensor_names()

    def getAnchoredTensor(self, short_name: str) -> Tensor:
        """Returns an anchored tensor of the last call. Raises AssertionError if no tensor has this name."""
        anchored = self._program.anchored if self._program is not None else {}
        assert short_name in anchored, f"No tensor with name {short_name} found."
        return anchored[short_name]

    # ------------------------------------------------------------------------- times of the last call

    def cycleCount(self) -> int:
        """Returns the number of pipeline cycles in the last call; a real IPU counts clock cycles."""
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise error("Cycle count logging is disabled. Please set option logCycleCount to True to enable.")
        if not self._has_run:
            raise error("Please run the model at least once before obtaining cycle count.")
        program = self._compiled()
        return total_cycles(schedule_of(program.trace, self._options), program.rounds)

    def getPerfCounters(self) -> Counters:
        """Returns when inputs entered and outputs left in the last call, in pipeline cycles (see counters.py)."""
        if self._program is None or not self._has_run:
            return NOTHING
        return perf_counters(schedule_of(self._program.trace, self._options), self._program.transfers())

    def getHostIpuLatency(self) -> Latency:
        """Returns zeros, because transfers take no cycles in the simulator."""
        return latency(self.getPerfCounters(), "input", "input_complete")

    def getComputeLatency(self) -> Latency:
        """Returns minimum, maximum and mean cycles from a complete input to its output."""
        return latency(self.getPerfCounters(), "input_complete", "output")

    def getIpuHostLatency(self) -> Latency:
        """Returns zeros, because transfers take no cycles in the simulator."""
        return latency(self.getPerfCounters(), "output", "output_complete")

    def getLatency(self) -> Latency:
        """Returns minimum, maximum and mean cycles from an input to its complete output."""
        return latency(self.getPerfCounters(), "input", "output_complete")

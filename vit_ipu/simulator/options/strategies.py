"""Execution strategies: the stage of each block, and the IPU of each stage (python/options.py:672-1143)."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Union

from vit_ipu.simulator.enums import AutoStage, Liveness
from vit_ipu.simulator.options.values import IStageManager

BlockId = str


class Stage:
    """One or more blocks that run on one IPU."""

    def __init__(self, *block_ids: BlockId) -> None:
        assert all(isinstance(block, str) for block in block_ids), (
            f"Block IDs are supposed to be strings but got {block_ids}"
        )
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: Any = None

    @property
    def blocks(self) -> Sequence[BlockId]:
        """The IDs of the blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Sets the IPU on which the stage runs."""
        assert isinstance(ipu, int)
        self._ipu = ipu
        return self


class StageManager(IStageManager):
    """Looks up the listed stages of blocks, or assigns stages to blocks as the blocks begin if none are listed."""

    def __init__(self, stages: Dict[BlockId, Stage], auto_stage: AutoStage) -> None:
        super().__init__()
        self._listed, self._automatic = stages, dict(stages)
        self._auto_stage = auto_stage
        self._next_stage_id = 1

    def getStage(self, block_id: BlockId) -> Stage:
        """Returns the stage of a block. Raises AssertionError if there is no stage for the block."""
        if block_id not in self._automatic:
            expected = list(self._listed)
            assert not expected, f"Unknown Block '{block_id}' list of expected Blocks: {expected}"
            self._automatic[block_id] = self._new_stage(block_id)
        return self._automatic[block_id]

    def _new_stage(self, block_id: BlockId) -> Stage:
        stage = Stage(block_id)
        if self._auto_stage == AutoStage.SameAsIpu:
            assert self._current_ipu is not None, (
                f"poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {block_id}"
            )
            stage._stage_id = self._current_ipu
        else:
            stage._stage_id = self._next_stage_id
            self._next_stage_id += 1
        return stage


class _IExecutionStrategy:
    """The base of the strategies: the blocks' stages, which `stage_manager` looks up during tracing."""

    def __init__(self, stages_manager: StageManager, block_map: Dict[BlockId, Stage]) -> None:
        self._block_map = block_map
        self.stage_manager = stages_manager

    def stage(self, block_id: BlockId) -> Stage:
        """Returns the stage that a block belongs to."""
        assert block_id in self._block_map, f"Unknown block {block_id}"
        return self._block_map[block_id]

    def onStartTracing(self) -> None:
        """Calls the stage manager's `clearDebug` before a model is traced."""
        self.stage_manager.clearDebug()

    def onEndTracing(self) -> None:
        """Calls the stage manager's `printDebug` after a model has been traced."""
        self.stage_manager.printDebug()

    def backendOptions(self) -> Dict[str, Any]:
        """Returns the entries that the strategy adds to Options.toDict()."""
        return {}


def _add_blocks(block_map: Dict[BlockId, Stage], stage: Stage) -> None:
    for block in stage.blocks:
        assert block not in block_map, f"{block} associated with more than one stage"
        block_map[block] = stage


class PipelinedExecution(_IExecutionStrategy):
    """The default strategy: all stages work at once, each on a different micro-batch."""

    def __init__(self, *args: Any) -> None:
        """Takes one AutoStage, or the stages in order, each a Stage, a block ID or a list of block IDs."""
        block_map: Dict[BlockId, Stage] = {}
        auto_stage = AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], AutoStage):
            auto_stage, args = args[0], ()
        for stage_id, arg in enumerate(args):
            stage = arg if isinstance(arg, Stage) else Stage(arg) if isinstance(arg, str) else Stage(*arg)
            stage._stage_id = stage_id
            _add_blocks(block_map, stage)
        super().__init__(StageManager(block_map, auto_stage), block_map)

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 0}


class ShardedExecution(PipelinedExecution):
    """A strategy in which one stage works at a time."""

    def backendOptions(self) -> Dict[str, Any]:
        return {"execution_mode": 1}


class Phase:
    """Stages that run at the same time."""

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        """Takes one or more Stages, or the block IDs of a single Stage."""
        self.stages: Sequence[Stage]
        if all(isinstance(element, Stage) for element in arg):
            self.stages = arg  # type: ignore[assignment]
        else:
            assert all(isinstance(element, str) for element in arg), (
                f"All arguments must either be block IDs (strings) or Stages: {[type(e) for e in arg]}"
            )
            self.stages = [Stage(*arg)]  # type: ignore[arg-type]

    def stage(self, idx: int) -> Stage:
        """Returns the stage with the index `idx`."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Sets an IPU for each stage."""
        assert len(ipus) == len(self.stages), (
            f"Phase contains {len(self.stages)} stages but you provided {len(ipus)} ipus"
        )
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class _IPhasedExecution(_IExecutionStrategy):
    """Phases that run one after the other; the simulator runs blocks in the model's order, with the same results."""

    _serial: bool

    def __init__(self, *phases: Union[Phase, List[Stage], List[BlockId]]) -> None:
        """Takes phases: each a Phase, a Stage, a block ID, or a list of Stages or block IDs."""
        assert phases, "There is currently no AutoStage for PhasedExecution, please explicitly specify the phases"
        self._tensors_liveness = Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases: List[Phase] = []
        block_map: Dict[BlockId, Stage] = {}
        for phase_id, given in enumerate(phases):
            phase = given if isinstance(given, Phase) else Phase(*given if isinstance(given, list) else [given])
            self._phases.append(phase)
            for stage in phase.stages:
                stage._phase_id = phase_id
                _add_blocks(block_map, stage)
        super().__init__(StageManager(block_map, AutoStage.SameAsIpu), block_map)

    def phase(self, phase: int) -> Phase:
        """Returns the phase with the index `phase`."""
        assert isinstance(phase, int), "Phases are identified by positive integers"
        assert phase >= 0, "Phases are identified by positive integers"
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _IPhasedExecution:
        """Sets whether the last forward phase and the first backward phase are separate phases."""
        assert isinstance(use, bool)
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Any]:
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
            "serial_phases_execution": self._serial,
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases that alternate between two groups of IPUs."""

    _serial = False

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Sets whether tensors are kept off the chip until the backward pass."""
        assert isinstance(off_chip, bool)
        self._tensors_liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """Phases that all run on one group of IPUs."""

    _serial = True

    def setTensorsLiveness(self, liveness: Liveness) -> SerialPhasedExecution:
        """Sets when tensors leave the chip."""
        assert isinstance(liveness, Liveness)
        self._tensors_liveness = liveness
        return self

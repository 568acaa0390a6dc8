"""Execution strategies: which block belongs to which stage, and on which IPU (python/options.py:672-945)."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

from vit_ipu.simulator.enums import AutoStage


class Stage:
    """One or more blocks that run on one IPU."""

    def __init__(self, *block_ids: str) -> None:
        assert all(isinstance(block, str) for block in block_ids), (
            "Block IDs are supposed to be strings but got {}".format(block_ids)
        )
        self._blocks = block_ids
        self._stage_id = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Tuple[str, ...]:
        """The IDs of the blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> "Stage":
        """Sets the IPU on which the stage runs."""
        assert isinstance(ipu, int)
        self._ipu = ipu
        return self


class StageManager:
    """Resolves a block to its stage while a model is traced; `on_begin` learns of each block that begins."""

    def __init__(self, stages: Dict[str, Stage], auto_stage: AutoStage) -> None:
        self._stages = stages
        self._listed = bool(stages)
        self._auto_stage = auto_stage
        self._next_stage_id = 1
        self._next_auto_id = 0
        self.on_begin: Callable[[str, int, int], None] = lambda block, stage, ipu: None

    def begin(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        """A block begins: `on_begin` is told its ID, its stage and its IPU."""
        block = user_id if user_id is not None else self.next_auto_id()
        stage = self._stage_of(block, ipu_id)
        ipu = stage._ipu if stage._ipu is not None else ipu_id
        self.on_begin(block, stage._stage_id, stage._stage_id if ipu is None else ipu)

    def next_auto_id(self) -> str:
        """The ID of the next block that has none."""
        self._next_auto_id += 1
        return str(self._next_auto_id - 1)

    def reset_auto_id(self) -> None:
        """Counts blocks without an ID from 0 again."""
        self._next_auto_id = 0

    def _stage_of(self, block: str, ipu_id: Optional[int]) -> Stage:
        if block in self._stages:
            return self._stages[block]
        assert not self._listed, "Unknown Block '{}' list of expected Blocks: {}".format(block, list(self._stages))
        stage = Stage(block)
        if self._auto_stage == AutoStage.SameAsIpu:
            assert ipu_id is not None, (
                "poptorch.AutoStage.SameAsIpu was selected but no IPU was specified for block {}".format(block)
            )
            stage._stage_id = ipu_id
        else:
            stage._stage_id = self._next_stage_id
            self._next_stage_id += 1
        self._stages[block] = stage
        return stage


class _ExecutionStrategy:
    """What PipelinedExecution and ShardedExecution share."""

    execution_mode: int

    def __init__(self, *args: Any) -> None:
        """`args`: one AutoStage, or the stages in order, each a Stage, a block ID or a list of block IDs."""
        self._block_map: Dict[str, Stage] = {}
        auto_stage = AutoStage.SameAsIpu
        if len(args) == 1 and isinstance(args[0], AutoStage):
            auto_stage, args = args[0], ()
        for stage_id, arg in enumerate(args):
            stage = arg if isinstance(arg, Stage) else Stage(arg) if isinstance(arg, str) else Stage(*arg)
            stage._stage_id = stage_id
            for block in stage.blocks:
                assert block not in self._block_map, "{} associated with more than one stage".format(block)
                self._block_map[block] = stage
        self.stage_manager = StageManager(self._block_map, auto_stage)

    def stage(self, block_id: str) -> Stage:
        """The stage that a block belongs to."""
        assert block_id in self._block_map, "Unknown block {}".format(block_id)
        return self._block_map[block_id]

    def backendOptions(self) -> Dict[str, Any]:
        """What the strategy adds to Options.toDict()."""
        return {"execution_mode": self.execution_mode}


class PipelinedExecution(_ExecutionStrategy):
    """All stages at work at once, each on another micro-batch: the default."""

    execution_mode = 0


class ShardedExecution(PipelinedExecution):
    """One stage at work at a time."""

    execution_mode = 1

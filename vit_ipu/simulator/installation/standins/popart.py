"""A stand-in for `popart`: its enums. Everything else of PopART raises NotImplementedError."""

from __future__ import annotations

from typing import Any

from vit_ipu.simulator.errors import not_simulated
from vit_ipu.simulator.popart_enums import (
    AccumulateOuterFragmentSchedule,
    AnchorReturnTypeId,
    AutodiffStitchStrategy,
    BatchSerializationBatchSchedule,
    BatchSerializationMethod,
    BatchSerializationTransformContext,
    DeviceConnectionType,
    DeviceSelectionCriterion,
    ExchangeStrategy,
    ExecutionPhaseIOSchedule,
    ExecutionPhaseSchedule,
    GradientTensorTrackingMethod,
    Instrumentation,
    MeanReductionStrategy,
    MergeVarUpdateType,
    PatternsLevel,
    RecomputationType,
    RecomputeType,
    ReductionType,
    ReplicatedStreamMode,
    ReplicatedTensorSharding,
    SGDAccumulatorAndMomentum,
    SubgraphCopyingStrategy,
    SyncPattern,
    SyntheticDataMode,
    TensorStorage,
    TileSet,
    VariableRetrievalMode,
    VirtualGraphMode,
)

__all__ = [
    "AccumulateOuterFragmentSchedule",
    "AnchorReturnTypeId",
    "AutodiffStitchStrategy",
    "BatchSerializationBatchSchedule",
    "BatchSerializationMethod",
    "BatchSerializationTransformContext",
    "DeviceConnectionType",
    "DeviceSelectionCriterion",
    "ExchangeStrategy",
    "ExecutionPhaseIOSchedule",
    "ExecutionPhaseSchedule",
    "GradientTensorTrackingMethod",
    "Instrumentation",
    "MeanReductionStrategy",
    "MergeVarUpdateType",
    "PatternsLevel",
    "RecomputationType",
    "RecomputeType",
    "ReductionType",
    "ReplicatedStreamMode",
    "ReplicatedTensorSharding",
    "SGDAccumulatorAndMomentum",
    "SubgraphCopyingStrategy",
    "SyncPattern",
    "SyntheticDataMode",
    "TensorStorage",
    "TileSet",
    "VariableRetrievalMode",
    "VirtualGraphMode",
    "versionString",
]

__simulated__ = True
__version__ = "3.4.0+simulated"


def versionString() -> str:
    """Returns the version of PopART that this module stands in for."""
    return __version__


def __getattr__(name: str) -> Any:
    raise not_simulated("popart", name)

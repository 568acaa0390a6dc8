"""PopART's enums, whose numbers programs pass to `_Popart.set`.

Names and values come from graphcore/popart (commit d2f20d78): python/popart/popart_core/popart.cpp:602-1934 and
3340-3381, with the values of its headers in willow/include/popart. As with pybind11, the members are not
integers: `_Popart.set` takes `int(popart.RecomputationType.Standard)`.
"""

from __future__ import annotations

import enum
from typing import Any


class _PopartEnum(enum.Enum):
    """An enum whose members are not integers; int() and operator.index() return their numbers."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


def _numbered(name: str, members: str) -> Any:
    """Returns an enum of the members, numbered from 0."""
    return _PopartEnum(name, members, module=__name__, start=0)  # type: ignore[call-arg]


AccumulateOuterFragmentSchedule = _numbered(
    "AccumulateOuterFragmentSchedule", "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized"
)
AnchorReturnTypeId = _numbered("AnchorReturnTypeId", "Final EveryN All Sum")
AutodiffStitchStrategy = _numbered(
    "AutodiffStitchStrategy", "RecomputeMinimal RecomputeAllNonInputs AddFwdOutputs SafeAddFwdOutputs"
)
BatchSerializationBatchSchedule = _numbered(
    "BatchSerializationBatchSchedule", "Scheduler Isomorphic OverlapOnIo OverlapOnCompute"
)
BatchSerializationMethod = _numbered("BatchSerializationMethod", "UnrollDynamic UnrollStatic Loop")
DeviceConnectionType = _numbered("DeviceConnectionType", "Always OnDemand Never")
DeviceSelectionCriterion = _numbered("DeviceSelectionCriterion", "First Random")
ExchangeStrategy = _numbered("ExchangeStrategy", "JustInTime OverlapInnerLoop OverlapLoops OverlapStep")
ExecutionPhaseIOSchedule = _numbered("ExecutionPhaseIOSchedule", "Preload OnDemand")
ExecutionPhaseSchedule = _numbered("ExecutionPhaseSchedule", "Interleaving Batch BatchClusteredIO")
GradientTensorTrackingMethod = _numbered(
    "GradientTensorTrackingMethod",
    "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors",
)
Instrumentation = _numbered("Instrumentation", "Outer Inner")
MeanReductionStrategy = _numbered("MeanReductionStrategy", "Running Post")
MergeVarUpdateType = _numbered("MergeVarUpdateType", "Off All AutoLoose AutoTight")
PatternsLevel = _numbered("PatternsLevel", "NoPatterns Minimal Default All")
RecomputationType = _numbered("RecomputationType", "NoRecompute Standard NormOnly Pipeline RecomputeAll")
RecomputeType = _numbered("RecomputeType", "Undefined Checkpoint Recompute Recomputed")
ReductionType = _numbered("ReductionType", "Sum Mean NoReduction")
ReplicatedStreamMode = _numbered("ReplicatedStreamMode", "Broadcast Replicate")
ReplicatedTensorSharding = _numbered("ReplicatedTensorSharding", "Off On")
SGDAccumulatorAndMomentum = _numbered("SGDAccumulatorAndMomentum", "Combined Separate")
SubgraphCopyingStrategy = _numbered("SubgraphCopyingStrategy", "OnEnterAndExit JustInTime")
SyncPattern = _numbered("SyncPattern", "Full SinglePipeline ReplicaAndLadder")
SyntheticDataMode = _numbered("SyntheticDataMode", "Off Zeros RandomNormal RandomUniform")
TensorStorage = _numbered("TensorStorage", "OnChip OffChip")
TileSet = _numbered("TileSet", "Compute IO")
VariableRetrievalMode = _numbered("VariableRetrievalMode", "OnePerGroup AllReduceReplicas AllReplicas")
VirtualGraphMode = _numbered("VirtualGraphMode", "Off Manual Auto ExecutionPhases")


class BatchSerializationTransformContext(_PopartEnum):
    """Selects the pass that batch serialisation applies to."""

    Forward = 0
    Backward = 1
    Fwd = 0
    Bwd = 1

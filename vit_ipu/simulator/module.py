"""The names of PopTorch: what `import poptorch` gives once the simulator is installed.

`vit_ipu.simulator` has the same names; `__simulated__` distinguishes the module from the real one.
"""

from __future__ import annotations

import sys

from vit_ipu.simulator import enums, face, machine, ops, optim, options, profiling, testing
from vit_ipu.simulator.arithmetic.mode import numerics
from vit_ipu.simulator.enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from vit_ipu.simulator.errors import ConfigFileError, Error, RecoverableError, UnrecoverableError
from vit_ipu.simulator.execution.compile_hooks import registerPostCompileHook, registerPreCompileHook
from vit_ipu.simulator.execution.executor import PoplarExecutor
from vit_ipu.simulator.execution.factories import __version__, inferenceModel, load, trainingModel
from vit_ipu.simulator.installation.install import install, installed
from vit_ipu.simulator.loading.accessor import AsynchronousDataAccessor
from vit_ipu.simulator.loading.data_loader import DataLoader
from vit_ipu.simulator.logs import setLogLevel
from vit_ipu.simulator.nested import ICustomArgParser, registerCustomArgParser
from vit_ipu.simulator.ops import (
    CPU,
    BeginBlock,
    Block,
    BlockFunction,
    LegacyBeginBlockFn,
    MultiConv,
    NameScope,
    cond,
    ctc_beam_search_decoder,
    custom_op,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    ipu_print_tensor,
    nearest,
    nop,
    recomputationCheckpoint,
    removeBlocks,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from vit_ipu.simulator.options import Attribute, Options, TensorLocationSettings
from vit_ipu.simulator.options.strategies import (
    BlockId,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)
from vit_ipu.simulator.poptorch_core import (
    createPoptorchError,
    importPoptorchMetadataFromFile,
    isRunningOnIpu,
)
from vit_ipu.simulator.printing import (
    module_repr,
    print,
)
from vit_ipu.simulator.tracing.judging import judge

__simulated__ = True

face.register_module(sys.modules[__name__])

__all__ = [
    "CPU",
    "AsynchronousDataAccessor",
    "Attribute",
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "BlockId",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "ICustomArgParser",
    "LegacyBeginBlockFn",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConv",
    "MultiConvPlanType",
    "NameScope",
    "Options",
    "OutputMode",
    "OverlapMode",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "SerialPhasedExecution",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "__version__",
    "cond",
    "createPoptorchError",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "enums",
    "for_loop",
    "fps",
    "identity_loss",
    "importPoptorchMetadataFromFile",
    "inferenceModel",
    "install",
    "installed",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "ipu_print_tensor",
    "isRunningOnIpu",
    "judge",
    "load",
    "module_repr",
    "nearest",
    "nop",
    "numerics",
    "ops",
    "optim",
    "options",
    "poptorchAtExit",
    "print",
    "profiling",
    "recomputationCheckpoint",
    "registerCustomArgParser",
    "registerGeometricCustomArgParsers",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "removeBlocks",
    "serializedMatMul",
    "setLogLevel",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
    "testing",
    "trainingModel",
]


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Tells whether the simulated machine has `num_ipus` IPUs, held or not."""
    return machine.current.hardware and num_ipus <= machine.current.num_ipus


def ipuHardwareVersion() -> int:
    """Returns 2 (Mk2)."""
    assert machine.current.hardware, "No IPU hardware available on this system"
    return 2


def poptorchAtExit() -> None:
    """Does nothing: the simulator does not have the resources that PopTorch frees at exit."""


def registerGeometricCustomArgParsers() -> None:
    """Does nothing: poptorch_geometric is not simulated."""

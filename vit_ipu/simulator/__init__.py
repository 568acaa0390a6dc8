"""A PopTorch simulator: the module `poptorch` on plain PyTorch, by PopTorch's rules, without an IPU.

`install()` makes `import poptorch` give this module. What it computes, what it checks and what it leaves out is
in docs/simulator.md. `__simulated__` tells it from the real one.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, List, Optional

import torch

from vit_ipu.simulator import enums, machine, optim, options
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
from vit_ipu.simulator.executor import PoplarExecutor
from vit_ipu.simulator.loader import DataLoader
from vit_ipu.simulator.ops import (
    BeginBlock,
    Block,
    BlockFunction,
    identity_loss,
    isRunningOnIpu,
    nop,
    recomputationCheckpoint,
    removeBlocks,
)
from vit_ipu.simulator.options import Options, TensorLocationSettings
from vit_ipu.simulator.strategies import PipelinedExecution, ShardedExecution, Stage
from vit_ipu.simulator.wrapping import is_wrapped, shallow_copy

__simulated__ = True
__version__ = "3.4.0+simulated"

__all__ = [
    "AutoStage",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "CommGroupType",
    "ConfigFileError",
    "ConnectionType",
    "DataLoader",
    "DataLoaderMode",
    "Error",
    "HalfFloatCastingBehavior",
    "Liveness",
    "MatMulSerializationMode",
    "MeanReductionStrategy",
    "MultiConvPlanType",
    "Options",
    "OutputMode",
    "OverlapMode",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "ShardedExecution",
    "SharingStrategy",
    "Stage",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "VariableRetrievalMode",
    "identity_loss",
    "inferenceModel",
    "install",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "isRunningOnIpu",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "trainingModel",
]

_SUBMODULES = {"enums": enums, "optim": optim, "options": options}


def trainingModel(
    model: Any, options: Optional[Options] = None, optimizer: Optional[torch.optim.Optimizer] = None
) -> PoplarExecutor:
    """Wraps a model whose forward computes one loss; each call trains it."""
    model = model.model if isinstance(model, PoplarExecutor) else model
    if is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap "
            "before wrapping again."
        )
    return PoplarExecutor(shallow_copy(model), options, True, __version__, optimizer=optimizer, user_model=model)


def inferenceModel(model: Any, options: Optional[Options] = None) -> PoplarExecutor:
    """Wraps a model for calls that do not train it."""
    model = model.model if isinstance(model, PoplarExecutor) else model
    return PoplarExecutor(shallow_copy(model), options, False, __version__, user_model=model)


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether the simulated machine has that many IPUs, held or not."""
    return machine.machine.hardware and num_ipus <= machine.machine.num_ipus


def ipuHardwareVersion() -> int:
    """2: Mk2."""
    assert machine.machine.hardware, "No IPU hardware available on this system"
    return 2


def __getattr__(name: str) -> Any:
    if name in _NOT_SIMULATED:
        raise NotImplementedError("poptorch.{} is not simulated".format(name))
    raise AttributeError("module 'poptorch' has no attribute {!r}".format(name))


_NOT_SIMULATED = frozenset(
    "AsynchronousDataAccessor CPU ICustomArgParser MultiConv NameScope ParallelPhasedExecution Phase "
    "SerialPhasedExecution cond ctc_beam_search_decoder custom_op dynamic_slice dynamic_update for_loop "
    "fps ipu_print_tensor load nearest profiling registerCustomArgParser registerPostCompileHook "
    "registerPreCompileHook serializedMatMul setLogLevel set_available_memory set_overlap_for_input "
    "set_overlap_for_output testing".split()
)


# ------------------------------------------------------------------------------------ installation


class _Loader:
    """The loader in the installed module's spec: the module is already there."""

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install(num_ipus: int = 16, *, device: str = "cpu", hardware: bool = True) -> ModuleType:
    """Makes `import poptorch` give the simulator, on a new machine of `num_ipus` Mk2 IPUs; returns the module.

    `device` is where the IPUs' tensors live, "cpu" or "cuda". Without `hardware`, ipuHardwareIsAvailable() is
    False. Installed again, it only replaces the machine. Raises ImportError if the real PopTorch is loaded.
    """
    present = sys.modules.get("poptorch")
    if present is not None and not getattr(present, "__simulated__", False):
        raise ImportError("the real PopTorch is already imported in this process: start another one")
    machine.configure(num_ipus, device=device, hardware=hardware)
    if present is None:
        present = _module("poptorch", sys.modules[__name__], is_package=True)
        for name, submodule in _SUBMODULES.items():
            setattr(present, name, _module("poptorch." + name, submodule))
    return present


def installed() -> bool:
    """Whether `import poptorch` gives the simulator."""
    return bool(getattr(sys.modules.get("poptorch"), "__simulated__", False))


def _module(name: str, source: ModuleType, *, is_package: bool = False) -> ModuleType:
    """A module of its own name, with a valid spec, that shares the names of `source`."""
    module = ModuleType(name, source.__doc__)
    hidden: List[str] = ["__name__", "__spec__", "__loader__", "__package__", "__path__", "__file__", "__builtins__"]
    module.__dict__.update({key: value for key, value in source.__dict__.items() if key not in hidden})
    loader: Any = _Loader()
    module.__spec__ = ModuleSpec(name, loader, is_package=is_package)
    module.__loader__ = loader
    module.__package__ = name if is_package else name.rpartition(".")[0]
    if is_package:
        module.__path__ = []
    sys.modules[name] = module
    return module

"""Names that programs use from `poptorch.poptorch_core`, PopTorch's native module, and its private `_impl`."""

from __future__ import annotations

from typing import Any, Dict

from vit_ipu.simulator import context, machine
from vit_ipu.simulator.errors import Error, RecoverableError, UnrecoverableError, error
from vit_ipu.simulator.execution.wrapped_model import restored as _restoreWrapperIfNecessary
from vit_ipu.simulator.options.session_options import validate
from vit_ipu.simulator.thrown_errors import TestErrorType
from vit_ipu.simulator.thrown_errors import throw_test_error as _throwTestError

__all__ = [
    "Error",
    "RecoverableError",
    "TestErrorType",
    "UnrecoverableError",
    "_restoreWrapperIfNecessary",
    "_throwTestError",
    "createPoptorchError",
    "importPoptorchMetadataFromFile",
    "ipuHardwareVersion",
    "isCompilingWithDispatcher",
    "isDispatchTracing",
    "isRunningOnIpu",
]


def createPoptorchError(msg: str) -> Error:
    """Returns an Error in the form of PopTorch's Python side."""
    return error(msg)


def _validateOptions(options: Dict[str, Any]) -> None:
    """Raises Error for the first option that PopTorch's C++ side rejects."""
    validate(options)


def ipuHardwareVersion(num_ipus: int = 1) -> int:
    """Returns 2 (Mk2), or 0 if the machine does not have `num_ipus` IPUs."""
    return 2 if machine.current.hardware and num_ipus <= machine.current.num_ipus else 0


def importPoptorchMetadataFromFile(filename: str) -> Any:
    """Raises NotImplementedError: PopTorch's binary format is not simulated."""
    raise NotImplementedError("poptorch.importPoptorchMetadataFromFile is not simulated")


def isCompilingWithDispatcher() -> bool:
    """Tells whether a model is being traced."""
    return context.current.trace is not None


isDispatchTracing = isCompilingWithDispatcher


def isRunningOnIpu() -> bool:
    """Tells whether the simulator, rather than the host, is running the model."""
    return context.current.on_ipu

"""PopTorch's exceptions (python/poptorch.cpp:624-753)."""

from __future__ import annotations

import dis
import sys
from types import FrameType


class Error(Exception):
    """An error of PopTorch's back end; `type`, `message` and `location` describe the error and its place."""

    type = ""
    message = ""
    location = ""


class RecoverableError(Error):
    """A run-time error after which the IPU can be used again after `recovery_action`."""

    recovery_action = ""


class UnrecoverableError(Error):
    """A run-time error that needs other hardware."""


def error(message: str, kind: str = "poptorch_py_error") -> Error:
    """Returns an Error in PopTorch's form; `kind` is 'poptorch_py_error' for errors of PopTorch's Python side."""
    raised = Error(f"'{kind}': {message}")
    raised.type, raised.message = kind, message
    return raised


def cpp_error(message: str) -> Error:
    """Returns an Error in the form of PopTorch's C++ side ('poptorch_cpp_error')."""
    return error(message, "poptorch_cpp_error")


class NotSimulated(NotImplementedError, AttributeError):
    """A name of a module that the simulator stands in for and that is not simulated.

    As an AttributeError, it makes `hasattr` false, so that programs that look for a feature continue without it.
    """


def not_simulated(module: str, name: str) -> Exception:
    """Returns the error for a name that a stand-in's `__getattr__` lacks.

    A private name, which Python may look up, is just absent. `from module import name` gets an ImportError, because
    Python would replace an AttributeError by a text that tells of an incomplete installation.
    """
    if name.startswith("_"):
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    message = f"{module}.{name} is not simulated"
    if _is_importing(sys._getframe(2)):
        return ImportError(f"{message}: vit_ipu.simulator stands in for {module} and lacks {name}", name=module)
    return NotSimulated(message)


def _is_importing(frame: FrameType) -> bool:
    """Tells whether the frame is executing `from module import name`."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM"


class ConfigFileError(Exception):
    """A line of an options file that cannot be read."""

"""PopTorch's exceptions (python/poptorch.cpp:624-753)."""

from __future__ import annotations


class Error(Exception):
    """Raised by PopTorch's back end; `type`, `message` and `location` say what and where."""

    type = ""
    message = ""
    location = ""


class RecoverableError(Error):
    """A run-time error after which the IPU can be used again once `recovery_action` was taken."""

    recovery_action = ""


class UnrecoverableError(Error):
    """A run-time error that needs other hardware."""


def error(message: str, kind: str = "poptorch_py_error") -> Error:
    """An Error as PopTorch words it: 'poptorch_py_error' from its Python side, 'poptorch_cpp_error' else."""
    raised = Error(f"'{kind}': {message}")
    raised.type, raised.message = kind, message
    return raised


def cpp_error(message: str) -> Error:
    """An Error as PopTorch's C++ side words it."""
    return error(message, "poptorch_cpp_error")


class ConfigFileError(Exception):
    """A line of a file of options that cannot be read."""

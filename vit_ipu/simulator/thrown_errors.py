"""poptorch_core._throwTestError: throws an error of each kind, to test how a program handles it (Compiler.cpp:1793)."""

from __future__ import annotations

import enum
from typing import Dict, Tuple, Type

from vit_ipu.simulator.errors import Error, RecoverableError, UnrecoverableError, error


class TestErrorType(enum.Enum):
    """Kinds of errors that PopTorch's libraries throw."""

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_STACK = "[0] throwTestError::bottomLevel\n[1] throwTestError::topLevel\n"
_ERRORS: Dict[TestErrorType, Tuple[Type[Error], str, str]] = {
    TestErrorType.Poptorch: (Error, "poptorch_cpp_error", "This is a PopTorch error"),
    TestErrorType.Popart: (Error, "popart_exception", "This is a Popart error"),
    TestErrorType.PopartInternal: (Error, "popart_internal_exception", "This is a Popart error"),
    TestErrorType.Poplibs: (Error, "poplibs_exception", "This is a Poplibs error"),
    TestErrorType.PoplarUnrecoverable: (
        UnrecoverableError,
        "poplar_unrecoverable_runtime_error",
        "This is not recoverable",
    ),
    TestErrorType.PoplarUnknown: (Error, "poplar_unknown_runtime_error", "Don't know what happened"),
    TestErrorType.PoplarRecoverableFullReset: (
        RecoverableError,
        "poplar_recoverable_runtime_error",
        "Reboot needed",
    ),
    TestErrorType.PoplarLinkError: (
        Error,
        "poplar_link_error",
        "Link error. Output: Library -lfoo not found\ncheck path",
    ),
}


def throw_test_error(kind: TestErrorType) -> None:
    """Raises the error of a kind, with the attributes that PopTorch gives it."""
    made, name, message = _ERRORS[kind]
    like = error(message, name)
    raised = made(f"{like}\nError raised in:\n{_STACK}")
    raised.type, raised.message, raised.location = like.type, like.message, _STACK
    if isinstance(raised, RecoverableError):
        raised.recovery_action = "FULL_RESET"
    raise raised

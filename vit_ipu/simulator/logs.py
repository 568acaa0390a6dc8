"""PopTorch's log (python/_logging.py): Python's logger "poptorch", at the level POPTORCH_LOG_LEVEL (default WARN)."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Union

logger = logging.getLogger("poptorch")

_LEVELS = {
    "TRACE": (0, logging.DEBUG),
    "TRACE_ALL": (0, logging.DEBUG),
    "DEBUG": (1, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL),
}
_PUBLIC_LEVELS = sorted(set(_LEVELS) - {"TRACE_ALL", "DEBUG_IR"})


def setLogLevel(level: Union[str, int]) -> None:
    """Sets the level of the simulator's log: "TRACE", "DEBUG", "INFO", "WARN", "ERR" or "OFF", or its PopTorch number.

    Raises ValueError for a level that PopTorch does not have.
    """
    if isinstance(level, int):
        named = [name for name, (number, _) in _LEVELS.items() if number == level]
        if not named:
            raise ValueError("Invalid log level integer")
        level = named[0]
    if level not in _LEVELS:
        known = " and ".join([", ".join(_PUBLIC_LEVELS[:-1]), _PUBLIC_LEVELS[-1]])
        raise ValueError(f"Unknown log level: {level}. Valid values are {known}")
    logger.setLevel(_LEVELS[level][1])


def setPopartLogLevel(level: Any) -> None:
    """Checks the level and does nothing else, because the simulator does not run PopART."""
    if not isinstance(level, str) or level not in _LEVELS:
        raise ValueError("Level must be one of " + ", ".join(_LEVELS))


class _Console(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the sys.stderr that is current when a record is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("[%(asctime)s.%(msecs)03d] [%(name)s] [%(level)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def start() -> None:
    """Sets the level from the environment and adds a console handler, as PopTorch does when it is imported."""
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        console = _Console()
        console.setFormatter(_Formatter())
        logger.addHandler(console)

"""Checks Options.toDict() as PopTorch's C++ side does: option names by the type of their value, and ranges of enums.

Sources: poptorch/source/SessionOptionsParser.cpp:38-106, popart_compiler/source/SessionOptions.cpp:95-540.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Dict

from vit_ipu.simulator.errors import cpp_error
from vit_ipu.simulator.logs import logger

_TABLE = Path(__file__).parents[1] / "tables" / "session_options.json"

# Other parts of the parser handle these options; PopTorch uses anchored tensors only in Python.
_HANDLED_ELSEWHERE = frozenset(["anchored_tensors", "compilation_progress_bar_fn", "patterns_level"])

# The largest value of enums that the table does not list (SessionOptions.cpp:143-215, CompilerOptions.hpp).
_LAST_OF_ENUM = {
    "accumulateOuterFragmentSettings.schedule": ("popart::AccumulateOuterFragmentSchedule", 3),
    "accumulation_and_replication_reduction_type": ("popart::ReductionType", 2),
    "connection_type": ("DeviceConnectionType", 2),
    "execution_mode": ("ExecutionMode", 2),
    "output_mode": ("PopartOutputMode", 3),
    "sync_pattern": ("SyncPattern", 2),
    "tensors_liveness": ("Liveness", 3),
}


def validate(options: Dict[str, Any]) -> None:
    """Raises Error for the first option whose name, type or range PopTorch rejects."""
    for name, value in options.items():
        if name in _HANDLED_ELSEWHERE:
            continue
        if isinstance(value, bool):
            _set("bool", name, value)
        elif isinstance(value, float):
            _set("double", name, value)
        elif isinstance(value, int):
            _set("uint64", name, value)
            _check_range(name, value)
        elif isinstance(value, str):
            _set("string", name, value)
        elif isinstance(value, (set, list, tuple)):
            for item in value:
                _add(name, item)
        elif isinstance(value, dict):
            _validate_dict(name, value, options)
        else:
            raise cpp_error(f"Unknown value type {type(value)} for option {name}")


def _validate_dict(name: str, value: Dict[Any, Any], options: Dict[str, Any]) -> None:
    if name == "patterns":
        _check_patterns(value, options)
    elif name.startswith("location_"):
        _check_location(name, value)
    elif name != "available_memory_proportion":
        for key, item in value.items():
            _known("container", "map", name)
            logger.debug("poptorch.Options set %s[%s] to %s", name, key, item)


def _set(kind: str, name: str, value: Any) -> None:
    _known(kind, "floating point" if kind == "double" else kind, name)
    logger.debug("poptorch.Options set %s to value %s", name, str(value).lower() if kind == "bool" else value)


def _add(name: str, item: Any) -> None:
    _known("container", "set / vector", name)
    logger.debug("poptorch.Options added %s to %s", item, name)


def _known(kind: str, called: str, name: str) -> None:
    if name not in _table()["options"][kind]:
        raise cpp_error(f"Unknown {called} option {name}")


def _check_range(name: str, value: int) -> None:
    if value < 0:
        raise cpp_error(f"Value of option {name} is negative: {value}")
    kind = _table()["options"]["uint64"][name].get("enum")
    if kind is not None:
        last = _table()["enums"][kind]["N"] - 1
    elif name in _LAST_OF_ENUM:
        kind, last = _LAST_OF_ENUM[name]
    else:
        return
    if value > last:
        raise cpp_error(f"Value for {kind} out of range")


def _check_patterns(patterns: Dict[Any, Any], options: Dict[str, Any]) -> None:
    """Checks the level of the patterns; accepts any names, because the simulator does not know PopART's patterns."""
    if "patterns_level" not in options:
        raise cpp_error("PopART option 'patterns' should not be set without first setting 'patterns_level'.")
    if not 0 <= options["patterns_level"] <= 3:
        raise cpp_error("Value for PatternsLevel out of range")


def _check_location(name: str, location: Dict[str, Any]) -> None:
    for option in location:
        if name not in _table()["location_keys"]:
            raise cpp_error("Unknown tensor location " + name)
        if option not in _table()["location_options"]:
            raise cpp_error(f"Unknown option '{option}' for tensor location {name}")


@functools.lru_cache(maxsize=None)
def _table() -> Dict[str, Any]:
    table: Dict[str, Any] = json.loads(_TABLE.read_text())
    return table

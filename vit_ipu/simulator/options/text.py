"""Reads options from JSON and from a file (python/options.py:1200-1314, python/_options_config.py)."""

from __future__ import annotations

import json
import os
from typing import Any

from vit_ipu.simulator import enums, face
from vit_ipu.simulator.errors import ConfigFileError


def call_setters(options: Any, string: str) -> None:
    """Calls the setters that a JSON object names with their values; a list gives several arguments.

    A string such as "OutputMode.All" names a member of an enum.
    """
    for name, value in json.loads(string).items():
        setter = options
        for part in name.split("."):
            setter = getattr(setter, part)
        if isinstance(value, list):
            setter(*value)
        else:
            setter(_enum_value(value))


def run_lines(options: Any, filepath: str) -> None:
    """Runs each line of a file as Python code, prefixed with `options.`; # begins a comment.

    Raises ConfigFileError if a line is not valid Python.
    """
    with open(filepath) as file:
        lines = [line.strip() for line in file]
    code = "\n".join("options." + line for line in lines if line and not line.startswith("#"))
    try:
        exec(code, {}, {"poptorch": face.module(), "options": options})
    except SyntaxError as error:
        raise ConfigFileError(
            f"{type(error).__name__} at line {error.lineno} of {os.path.basename(filepath)}: {error.args[0]}\n> "
            f"{error.text}"
        ) from error


def _enum_value(value: Any) -> Any:
    if isinstance(value, str) and value.count(".") == 1:
        kind, name = value.split(".")
        return getattr(getattr(enums, kind, None), name, value)
    return value

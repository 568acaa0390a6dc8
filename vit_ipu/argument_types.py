"""Checks of the types of the arguments that callers in Python give: a wrong one is named, with its value.

A command gets texts, whose types typer checks; a function gets any object.
"""

from __future__ import annotations

import os
from typing import Any, Iterable, List, Optional

from vit_ipu.errors import UserError
from vit_ipu.text import shortened

_LONGEST = 80


def path_text(name: str, value: Any, kind: str = "a path") -> str:
    """Returns a path as text. Raises UserError if `value` is not a path, is empty, or cannot name a file.

    An empty path would otherwise mean the current folder.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(text, str):
        raise UserError(f"{name} is {_shown(value)}, but must be {kind}")
    if not text:
        raise UserError(f"{name} is empty: give {kind}")
    if "\0" in text:
        raise UserError(f"{name} {text!r} has a zero byte, which no path has: give {kind}")
    return text


def path_texts(name: str, values: Any) -> List[str]:
    """Returns one path, or several, as texts. Raises UserError."""
    several = [values] if isinstance(values, (str, bytes, os.PathLike)) else _items(name, values, "a path or a list")
    return [path_text(name, value) for value in several]


def texts(name: str, values: Any) -> List[str]:
    """Returns the texts of a list; none for None. Raises UserError for a single string, whose letters would count."""
    if values is None:
        return []
    if isinstance(values, str):
        raise UserError(f"{name} must be a list, but is the string {values!r}: give [{values!r}]")
    several = list(_items(name, values, "a list of strings"))
    for value in several:
        if not isinstance(value, str):
            raise UserError(f"{name} has {_shown(value)}, but must be a list of strings")
    return several


def optional_count(name: str, value: Any) -> Optional[int]:
    """Returns a whole number of 1 or more, or None. Raises UserError; True is not a number."""
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise UserError(f"{name} is {_shown(value)}, but must be a whole number of 1 or more")
    return int(value.__index__())


def optional_text(name: str, value: Any) -> Optional[str]:
    """Returns a text, or None. Raises UserError."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} is {_shown(value)}, but must be a string")
    return value


def _items(name: str, values: Any, kind: str) -> Iterable[Any]:
    try:
        return iter(values)
    except TypeError:
        raise UserError(f"{name} is {_shown(values)}, but must be {kind}") from None


def _shown(value: Any) -> str:
    return shortened(f"{value!r} ({type(value).__name__})", _LONGEST)

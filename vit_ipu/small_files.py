"""Reads files of unknown origin within bounds: regular files only, and small texts of bounded size, depth and digits.

What is beyond a bound is a ValueError whose message is the reason only; the caller adds the file and the remedy.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, List, Union

MAX_TEXT_BYTES = 8 << 20
"""Bytes of a JSON file or a list of class names: a hundred thousand classes take half of it."""
MAX_LIST_BYTES = 64 << 20
"""Bytes of a list with a line for each image, such as mmpretrain's meta/train.txt of ImageNet, which has 46 MB."""
MAX_DEPTH = 64
"""Levels of lists and mappings in each other."""
MAX_DIGITS = 100
"""Characters of an integer: one of the generator of random numbers has 39."""
MAX_CONTAINERS = 250_000
"""Lists and mappings of a JSON file, each of which takes 60 to 240 bytes of memory."""


def open_regular(path: Union[str, Path], *, buffering: int = -1) -> BinaryIO:
    """Opens a file for reading, without waiting for the other end of a pipe.

    Raises OSError as `open` does, and ValueError for a pipe, a device or a socket.
    """
    file: BinaryIO = open(str(path), "rb", buffering=buffering, opener=_open_at_once)  # type: ignore[assignment]  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise ValueError("it is not a regular file") from None
        raise


def read_bytes(path: Union[str, Path], *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Returns the bytes of a regular file. Raises OSError or, for another kind or too many bytes, ValueError."""
    with open_regular(path) as file:
        _require_size(os.fstat(file.fileno()).st_size, limit)
        content = file.read(limit + 1)
    _require_size(len(content), limit)  # files of /proc have no size
    return content


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"it has {size:,} bytes, and at most {limit:,} are read")


def read_text(path: Union[str, Path], *, limit: int = MAX_TEXT_BYTES, encoding: str = "utf-8") -> str:
    """Returns the text of a regular file. Raises OSError, or ValueError if it is too large or not UTF-8."""
    try:
        return read_bytes(path, limit=limit).decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file: its byte {error.start:,} is not UTF-8") from None


def read_json(path: Union[str, Path], *, limit: int = MAX_TEXT_BYTES, allow_nan: bool = False) -> Any:
    """Returns the value in a JSON file. Raises OSError, or ValueError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, limit=limit), allow_nan=allow_nan)


def parse_json(text: str, *, allow_nan: bool = False) -> Any:
    """Returns the value of a JSON text.

    `allow_nan` accepts NaN and infinities, which Python writes but JSON lacks. Raises ValueError for a text that is not
    JSON, or is beyond the bounds of this module.
    """
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ValueError(f"it has more than {MAX_CONTAINERS:,} lists and objects")
    try:
        value = json.loads(text, parse_int=parse_integer, parse_float=float if allow_nan else _finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check(value, allow_nan)
    return value


def parse_integer(text: str) -> int:
    """Returns the integer in a text. Raises ValueError for more digits than any file of this program needs."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer in it has {len(text):,} digits, and at most {MAX_DIGITS} are read")
    return int(text)


_TOO_DEEP = f"its values are nested more than {MAX_DEPTH} levels deep"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text}, which no float can hold")
    return value


def _check(value: Any, allow_nan: bool) -> None:
    """Raises ValueError for values that are nested too deeply, and for the constants NaN and Infinity."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: List[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(part.values())
            elif isinstance(part, list):
                inner.extend(part)
            elif not allow_nan and isinstance(part, float) and not math.isfinite(part):
                raise ValueError(f"it has the number {part}, which JSON lacks")
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)

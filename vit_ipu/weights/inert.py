"""Reads pickles from untrusted files as inert values: nothing that a pickle names is imported, looked up or called.

Every class or function that a pickle names becomes an empty class, made for this one pickle and derived from `Named`.
An instance of it keeps what the pickle would call the original with, or put into it, and does nothing else. The
constructors of these empty classes are all that a pickle can call, and no attribute of a value can be set, so a call
of `os.system` is read as a `Named` of this name that holds a string. All other values are Python's numbers, strings,
bytes, lists, tuples, sets and dicts.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import IO, Any, Dict, Iterable, List, Tuple, Type

_MAX_NAMES = 10_000
"""Limit of different names in a pickle, each of which costs a class."""


class Named:
    """A value of a class, or a result of a function, that a pickle names."""

    __slots__ = ("arguments", "items", "pairs", "state")
    name = ""
    """Module and name of the class or function."""
    arguments: Tuple[Any, ...]
    """Positional arguments of the call."""
    state: Any
    """The value's attributes, as the class itself would have received them."""
    items: List[Any]
    """Items, if the class is derived from list or set."""
    pairs: Dict[Any, Any]
    """Keys and values, if the class is derived from dict."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> Named:
        made = object.__new__(cls)
        made.arguments, made.state, made.items, made.pairs = arguments, None, [], {}
        return made

    # The names that the unpickler calls for values that are not Python's own.

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value

    def append(self, item: Any) -> None:
        self.items.append(item)

    def add(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        self.items.extend(items)


class Reference:
    """Reference to data outside of the pickle, such as the storage of a tensor."""

    __slots__ = ("to",)

    def __init__(self, to: Any) -> None:
        self.to = to


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._classes: Dict[str, Type[Named]] = {}
        self.references: List[Any] = []

    def find_class(self, module: str, name: str) -> Type[Named]:
        full = f"{module}.{name}"
        if full not in self._classes:
            if len(self._classes) == _MAX_NAMES:
                raise pickle.UnpicklingError(f"it has more than {_MAX_NAMES} names")
            self._classes[full] = type("Named", (Named,), {"__slots__": (), "name": full})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        self.references.append(pid)
        if isinstance(pid, tuple) and len(pid) > 1 and isinstance(pid[1], type) and pid[0] == "module":
            return pid[1]  # torch before 1.6 wrote ("module", class, file, source)
        return Reference(pid)


def unpickle(file: IO[bytes]) -> Tuple[Any, List[Any]]:
    """Returns the value of the next pickle in a file, and its references to data outside of the pickle.

    Executes nothing of the pickle. Raises an Exception of any class if the pickle is damaged.
    """
    start = file.tell()
    _check_claims(file)
    end = file.tell()
    file.seek(start)
    unpickler = _Unpickler(file.read(end - start))
    return unpickler.load(), unpickler.references


def _check_claims(file: IO[bytes]) -> None:
    """Raises an Exception if a pickle claims more bytes than follow, or would have a table larger than itself.

    The table is of values that are used several times: the unpickler allocates it up to the highest number in use.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # stops after the pickle
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"it numbers a value {argument} after {count} operations")

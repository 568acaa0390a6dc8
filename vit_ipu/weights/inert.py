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
from typing import IO, Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple, Type

_MAX_NAMES = 10_000
"""Limit of different names in a pickle, each of which costs a class."""
_MAX_DEPTH, _MAX_WORK, _ALLOWED_WORK = 100, 10, 10_000
"""Limits of the keys of dicts and members of sets: the depth of tuples in tuples, and the values to hash for each
operation of the pickle, beyond a number that is always allowed."""


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
    """Raises an Exception if a pickle claims more bytes than follow, or more memory or time than fits its size.

    The table of values that are used several times is allocated up to the highest number in use. Tuples that hold one
    tuple twice double what is hashed with each level, so that a few bytes take any time.
    """
    hashed = _Hashed()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # stops after the pickle
        if opcode.name in _PUTS and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"it numbers a value {argument} after {count} operations")
        hashed.apply(opcode, argument)
        if hashed.work > _MAX_WORK * count + _ALLOWED_WORK:
            raise pickle.UnpicklingError(f"its keys hold {hashed.work} values after {count} operations")


_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_FOLLOWED = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
"""Operations that make a value whose hash is computed from the values in it, each time again."""


class _Size(NamedTuple):
    """What the hash of a value takes."""

    work: int
    """Number of values that are hashed."""
    depth: int


_MARK = _Size(0, 0)
"""The value on the stack that the operation MARK puts there; compared by identity."""
_ONE, _MOST, _LARGE_NUMBER = _Size(1, 1), 1 << 62, 1024


class _Hashed:
    """Follows the stack of the unpickler, and adds up what the hashes of all keys take."""

    def __init__(self) -> None:
        self.work = 0
        self._stack: List[_Size] = []
        self._memo: Dict[int, _Size] = {}

    def apply(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Applies an operation. Raises an Exception if the stack lacks its operands, or a key is nested too deep."""
        name, stack = opcode.name, self._stack
        if name in _PUTS or name == "MEMOIZE":
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif not opcode.stack_before:
            if opcode.stack_after:
                stack.append(_constant(argument))
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken = self._taken(opcode)
            self._add(_keys(name, taken))
            stack.extend([_tuple(taken) if name in _FOLLOWED else _ONE] * len(opcode.stack_after))

    def _taken(self, opcode: pickletools.OpcodeInfo) -> Sequence[_Size]:
        """Removes the operands from the stack; returns those above the mark, or all of an operation without one."""
        stack, before = self._stack, opcode.stack_before
        if opcode.name == "POP" and stack and stack[-1] is _MARK:
            del stack[-1]
            return ()
        number, above = len(before), None
        if pickletools.markobject in before:
            number = before.index(pickletools.markobject)
            start = next(place for place in reversed(range(len(stack))) if stack[place] is _MARK)
            above = stack[start + 1 :]
            del stack[start:]
        if number > len(stack):
            raise pickle.UnpicklingError(f"{opcode.name} lacks operands")
        below = stack[len(stack) - number :]
        del stack[len(stack) - number :]
        return below if above is None else above

    def _add(self, keys: Sequence[_Size]) -> None:
        for key in keys:
            if key.depth > _MAX_DEPTH:
                raise pickle.UnpicklingError(f"a key is nested {key.depth} deep")
            self.work += key.work


def _keys(name: str, operands: Sequence[_Size]) -> Sequence[_Size]:
    """Returns those of the operands that an operation hashes."""
    if name == "SETITEM":
        return operands[1:2]
    if name in ("SETITEMS", "DICT"):
        return operands[::2]
    return operands if name in ("ADDITEMS", "FROZENSET") else ()


def _constant(value: Any) -> _Size:
    """Returns the size of a plain value; an integer of many digits is hashed each time, a string only once."""
    if isinstance(value, int) and value.bit_length() > _LARGE_NUMBER:
        return _Size(value.bit_length() // _LARGE_NUMBER, 1)
    return _ONE


def _tuple(parts: Sequence[_Size]) -> _Size:
    work = 1 + sum([part.work for part in parts])
    return _Size(min(work, _MOST), 1 + max([part.depth for part in parts], default=0))

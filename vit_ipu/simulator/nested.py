"""Nested tuples, lists, dicts and types of the user's own, taken apart into tensors and put together again."""

from __future__ import annotations

import abc
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

from torch import Tensor

from vit_ipu.simulator.errors import error


class ICustomArgParser(abc.ABC):
    """How the tensors of a user's own type are taken out of it and put into a new one."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Any:
        """Yields every tensor of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Tensor]) -> Any:
        """A new structure like the original, with tensors of the iterator in that order."""


_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: type, arg_parser: Optional[ICustomArgParser]) -> None:
    """Sets the parser of a type and of those derived from it; None takes it away."""
    if arg_parser is None:
        _parsers.pop(arg_data_type, None)
    elif not isinstance(arg_parser, ICustomArgParser):
        raise error("arg_parser must inherit from ICustomArgParser")
    else:
        _parsers[arg_data_type] = arg_parser


def flatten(structure: Any) -> List[Tensor]:
    """The tensors in nested tuples, lists, dicts and registered types, in order; anything else is left out."""
    return list(_tensors(structure))


def rebuild(structure: Any, tensors: Iterable[Tensor]) -> Any:
    """The structure with its tensors replaced, in order."""
    source = iter(tensors)

    def copy(part: Any) -> Any:
        parser = _parser_of(part)
        if parser is not None:
            return parser.reconstruct(part, source)
        if isinstance(part, Tensor):
            return next(source)
        if isinstance(part, dict):
            return type(part)({key: copy(value) for key, value in part.items()})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(copy(value) for value in part))
        if isinstance(part, (list, tuple)):
            return type(part)(copy(value) for value in part)
        return part

    return copy(structure)


def as_list(outputs: Any) -> List[Any]:
    """What a function returned, one value or a list or tuple of them, as a list."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def map_tensors(structure: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The structure with `function` applied to each tensor."""
    return rebuild(structure, [function(tensor) for tensor in flatten(structure)])


def _tensors(structure: Any) -> Iterator[Tensor]:
    parser = _parser_of(structure)
    if parser is not None:
        yield from parser.yieldTensors(structure)
    elif isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from _tensors(value)
    elif isinstance(structure, (list, tuple)):
        for value in structure:
            yield from _tensors(value)


def _parser_of(value: Any) -> Optional[ICustomArgParser]:
    """The parser of the value's type, or of one that it derives from."""
    if not _parsers:
        return None
    exact = _parsers.get(type(value))
    if exact is not None:
        return exact
    return next((parser for kind, parser in _parsers.items() if isinstance(value, kind)), None)

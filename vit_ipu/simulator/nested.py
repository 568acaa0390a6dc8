"""Nested tuples, lists, dicts and user-defined types: flattening into tensors, and rebuilding."""

from __future__ import annotations

import abc
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

from torch import Tensor

from vit_ipu.simulator.errors import error


class ICustomArgParser(abc.ABC):
    """Extracts the tensors of a user-defined type and rebuilds an object of the type from tensors."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Any:
        """Yields every tensor of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Tensor]) -> Any:
        """Returns a structure like the original, with the iterator's tensors in the order of `yieldTensors`."""


_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: type, arg_parser: Optional[ICustomArgParser]) -> None:
    """Sets the parser of a type and of the types derived from it; None removes the parser."""
    if arg_parser is None:
        _parsers.pop(arg_data_type, None)
    elif not isinstance(arg_parser, ICustomArgParser):
        raise error("arg_parser must inherit from ICustomArgParser")
    else:
        _parsers[arg_data_type] = arg_parser


def flatten(structure: Any) -> List[Tensor]:
    """Returns the tensors in nested tuples, lists, dicts and registered types, in order; leaves out other values."""
    return list(_tensors(structure))


def rebuild(structure: Any, tensors: Iterable[Tensor]) -> Any:
    """Returns the structure with its tensors replaced by `tensors`, in order."""
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
    """Returns a function's outputs, which are one value or a list or tuple of values, as a list."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def map_tensors(structure: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Returns the structure with `function` applied to each tensor."""
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
    """Returns the parser of the value's type, or of a type that it derives from; None if there is no parser."""
    if not _parsers:
        return None
    exact = _parsers.get(type(value))
    if exact is not None:
        return exact
    return next((parser for kind, parser in _parsers.items() if isinstance(value, kind)), None)

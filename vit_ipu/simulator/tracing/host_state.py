"""Plain attributes that a forward pass changes: constants on the IPU, because PopTorch traces the pass only once.

A counter that is not a buffer counts to one and stays there, and a cache that the forward pass fills is empty for each
micro-batch (user guide, "Parameters and buffers"; docs/user_guide/buffers.py).
"""

from __future__ import annotations

import copy
import math
import operator
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple

from torch import Tensor, nn

_MODULE_ATTRIBUTES = set(nn.Module().__dict__)
_NOTHING = object()


class Kept(NamedTuple):
    """The value of an attribute, and the content that the value had when it was recorded."""

    value: Any
    content: Any


_ABSENT = Kept(None, _NOTHING)


class Change(NamedTuple):
    """An attribute of a module before the traced forward pass and after it."""

    module: nn.Module
    name: str
    before: Kept
    after: Kept


class HostState:
    """The plain attributes of a model's modules: numbers, strings, tensors, lists and dictionaries."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = {module: _attributes(module) for module in model.modules()}

    def changes(self) -> List[Change]:
        """Returns the attributes that have changed since construction."""
        found = []
        for module, before in self._attributes.items():
            now = _attributes(module)
            for name in [*before, *(name for name in now if name not in before)]:
                old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
                if not _same(old.content, new.content):
                    found.append(Change(module, name, old, new))
        return found


@contextmanager
def as_before(changes: List[Change]) -> Iterator[None]:
    """Sets the attributes to their values before the traced forward pass, and on exit to their values after that pass.

    An attribute that the traced pass left without data, such as a result computed on the IPU, keeps the value that the
    last micro-batch gave it.
    """
    for change in changes:
        restore(change, change.before)
    try:
        yield
    finally:
        for change in changes:
            if not _without_data(change.after.content):
                restore(change, change.after)


def _attributes(module: nn.Module) -> Dict[str, Kept]:
    own = {name: value for name, value in module.__dict__.items() if name not in _MODULE_ATTRIBUTES}
    return {name: Kept(value, _content(value)) for name, value in own.items()}


def _content(value: Any) -> Any:
    """Returns the content of `value`, copied so that in-place changes of `value` do not affect the copy."""
    if type(value) is Tensor and value.is_leaf and not value.is_meta:
        return value.detach().clone()
    return copy.copy(value) if type(value) in (list, dict) else value


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        same_kind = old.shape == new.shape and old.dtype == new.dtype and old.device == new.device
        return same_kind and not new.is_meta and bool(((old == new) | (old.isnan() & new.isnan())).all())
    if type(old) is not type(new):
        return False
    if isinstance(old, list):
        return len(old) == len(new) and all(map(operator.is_, old, new))
    if isinstance(old, dict):
        return list(old) == list(new) and all(map(operator.is_, old.values(), new.values()))
    if isinstance(old, float) and math.isnan(old):
        return math.isnan(new)
    return isinstance(old, (bool, int, float, str)) and bool(old == new)


def restore(change: Change, kept: Kept) -> None:
    """Gives an attribute its kept value; lists and dictionaries stay the same objects, because hooks may hold them."""
    attributes, value = change.module.__dict__, kept.value
    if kept is _ABSENT:
        attributes.pop(change.name, None)
    elif type(value) is list:
        value[:] = kept.content
        attributes[change.name] = value
    elif type(value) is dict:
        value.clear()
        value.update(kept.content)
        attributes[change.name] = value
    else:
        attributes[change.name] = _content(kept.content)


def _without_data(content: Any) -> bool:
    if isinstance(content, (list, tuple)):
        return any(map(_without_data, content))
    if isinstance(content, dict):
        return _without_data(list(content.values()))
    return isinstance(content, Tensor) and content.is_meta

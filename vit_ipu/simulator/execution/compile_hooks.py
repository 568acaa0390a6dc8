"""Functions that run before and after every compilation (python/_poplar_executor.py:1595-1625)."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator

from torch.utils.hooks import RemovableHandle

Hook = Callable[[], Any]

_before: Dict[int, Hook] = OrderedDict()
_after: Dict[int, Hook] = OrderedDict()


def registerPreCompileHook(hook: Hook) -> RemovableHandle:
    """Runs `hook` before compilations until the handle is removed. Raises RuntimeError if `hook` is not callable."""
    if not callable(hook):
        raise RuntimeError("Pre-compile hook must be callable")
    return _register(_before, hook)


def registerPostCompileHook(hook: Hook) -> RemovableHandle:
    """Runs `hook` after compilations until the handle is removed. Raises RuntimeError if `hook` is not callable."""
    if not callable(hook):
        raise RuntimeError("Post-compile hook must be callable")
    return _register(_after, hook)


@contextmanager
def around_compilation() -> Iterator[None]:
    """Runs the registered hooks before and after the body; those after it also run if the body or a hook fails.

    PopTorch does the same (python/_poplar_executor.py:800, 880-887).
    """
    try:
        for hook in list(_before.values()):
            hook()
        yield
    finally:
        for hook in list(_after.values()):
            hook()


def _register(hooks: Dict[int, Hook], hook: Hook) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle

"""Prints modules with the blocks that the modules begin (python/_printing.py)."""

from __future__ import annotations

import builtins
from typing import Any

from torch import nn

__all__ = ["module_repr", "print"]


def module_repr(m: nn.Module) -> str:
    """Returns `repr(m)` with each module's forward pre-hooks, such as BeginBlock, before the module's name."""
    hooks = "".join(f"{hook!r} " for hook in m._forward_pre_hooks.values())
    extra = m.extra_repr()
    lines = extra.split("\n") if extra else []
    for name, child in m._modules.items():
        text = ("None" if child is None else module_repr(child)).replace("\n", "\n  ")
        lines.append(f"({name}): {text}")
    if not m._modules and len(lines) <= 1:
        return f"{hooks}{type(m).__name__}({extra})"
    body = "\n  ".join(lines)
    return f"{hooks}{type(m).__name__}(\n  {body}\n)"


def print(m: Any) -> None:
    """Prints a module with its blocks, then as Python does; prints other values only as Python does."""
    if isinstance(m, nn.Module):
        builtins.print(module_repr(m))
    builtins.print(m)

"""The module that `import poptorch` gives, as its parts know it: they cannot import what imports them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Callable, List, Optional

Installer = Callable[[int, str, bool], Any]
"""Installs the simulator in another process, on a machine with so many IPUs, of this device, with hardware or not."""

_modules: List[ModuleType] = []
_installers: List[Installer] = []


def register_module(module: ModuleType) -> None:
    """Takes the module, once it has imported its parts."""
    _modules[:] = [module]


def module() -> ModuleType:
    """Returns the module."""
    return _modules[0]


def register_installer(installer: Installer) -> None:
    """Takes what installs the simulator in another process, once it is installed in this one."""
    _installers[:] = [installer]


def installer() -> Optional[Installer]:
    """Returns what installs the simulator in another process, or None if it is not installed in this one."""
    return _installers[0] if _installers and is_simulated("poptorch") else None


def is_simulated(name: str) -> bool:
    """Tells whether an imported module of this name is the simulator's."""
    return bool(getattr(sys.modules.get(name), "__simulated__", False))

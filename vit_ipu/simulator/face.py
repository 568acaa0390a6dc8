"""Registry of the module that `import poptorch` returns, for its submodules, which cannot import that module."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Callable, List, Optional

Installer = Callable[[int, str, bool], Any]
"""Installs the simulator in another process, given the number of IPUs, the device, and whether there is hardware."""

_modules: List[ModuleType] = []
_installers: List[Installer] = []


def register_module(module: ModuleType) -> None:
    """Registers the `poptorch` module, after the module has imported its submodules."""
    _modules[:] = [module]


def module() -> ModuleType:
    """Returns the registered `poptorch` module."""
    return _modules[0]


def register_installer(installer: Installer) -> None:
    """Registers the function that installs the simulator in another process, once this process has it installed."""
    _installers[:] = [installer]


def installer() -> Optional[Installer]:
    """Returns the function that installs the simulator in another process; None if this process does not use it."""
    return _installers[0] if _installers and is_simulated("poptorch") else None


def is_simulated(name: str) -> bool:
    """Tells whether the imported module `name` is the simulator's."""
    return bool(getattr(sys.modules.get(name), "__simulated__", False))

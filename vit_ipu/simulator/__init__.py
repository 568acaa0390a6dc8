"""A PopTorch simulator: the module `poptorch` in plain PyTorch, with PopTorch's rules and without an IPU.

`install()` makes `import poptorch` return the names of `module.py`, which this package has too: the first use of one
imports them all. Until then nothing is imported, so that parts without torch, such as `cost.liveness`, load quickly.
docs/simulator.md describes what the simulator computes, checks and leaves out.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, List

_SPECIAL = ("__all__", "__simulated__", "__version__")


def __getattr__(name: str) -> Any:
    """Returns a submodule, or a name of PopTorch. Raises AttributeError for others."""
    if name.startswith("__") and name not in _SPECIAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    names = vars(importlib.import_module(f"{__name__}.module"))
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = names[name]
    return names[name]


def __dir__() -> List[str]:
    return sorted({*globals(), *__getattr__("__all__")})

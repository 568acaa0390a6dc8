"""Fine-tunes Vision Transformers over a pipeline of Graphcore IPUs, or with the same program on a GPU or a CPU.

`from vit_ipu import Config, load_config, train, evaluate, predict, load_model, plan, convert`: what the commands do, as
functions (docs/python.md). Each name is imported when it is first used, and torch when a function needs it.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from vit_ipu.api import LoadedModel, TrainedRun, convert, evaluate, load_config, load_model, plan, predict, train
    from vit_ipu.config import Config

__version__ = "0.1.0"
__all__ = [
    "Config",
    "LoadedModel",
    "TrainedRun",
    "convert",
    "evaluate",
    "load_config",
    "load_model",
    "plan",
    "predict",
    "train",
]
_PLACES = {"Config": "vit_ipu.config"}
"""Modules of the names above; vit_ipu.api has the others."""


class _Package(ModuleType):
    """The package, in which `train` stays the function: importing the module vit_ipu.train would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES.get(name, "vit_ipu.api")), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})

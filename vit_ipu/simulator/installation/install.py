"""Installs the simulator as the modules `poptorch`, `popart` and `popdist` of this process and of its children.

`horovod.torch`, which programs use besides popdist, gets a stand-in if Horovod is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Optional

import torch

from vit_ipu.simulator import logs, machine
from vit_ipu.simulator.arithmetic.mode import numerics as set_numerics
from vit_ipu.simulator.face import is_simulated, register_installer
from vit_ipu.simulator.installation.torch_compat import restore_removed
from vit_ipu.simulator.ops import torch_ops

SHIMS = Path(__file__).parent / "child_path"
"""A folder with modules `poptorch`, `popart` and `popdist` that install the simulator when they are imported."""

_SHIMS_OF_MISSING = SHIMS / "if_missing"
_ENVIRONMENT = "VIT_IPU_SIMULATOR"
_SOURCE = "vit_ipu.simulator"
_NAMES = {
    "poptorch": ".module",
    "poptorch.enums": ".enums",
    "poptorch.ops": ".ops",
    "poptorch.optim": ".optim",
    "poptorch.options": ".options",
    "poptorch.poptorch_core": ".poptorch_core",
    "poptorch.profiling": ".profiling",
    "poptorch.testing": ".testing",
    "poptorch._args_parser": ".tracing.arguments",
    "poptorch._impl": ".poptorch_core .execution.wrapped_model",
    "poptorch._logging": ".logs",
    "poptorch._options_impl": ".options.values",
    "poptorch._poplar_executor": ".execution.executor .execution.compile_hooks",
    "poptorch._printing": ".printing",
}
_STANDINS = {
    "popart": ".installation.standins.popart",
    "popdist": ".installation.standins.popdist",
    "popdist.poptorch": ".installation.standins.popdist_poptorch",
}
_STANDINS_OF_MISSING = {
    "horovod": ".installation.standins.horovod",
    "horovod.torch": ".installation.standins.horovod_torch",
}


def install(
    num_ipus: int = 16, *, device: str = "cpu", hardware: bool = True, numerics: Optional[str] = None
) -> ModuleType:
    """Makes `import poptorch` give the simulator, on a new machine of `num_ipus` Mk2 IPUs; returns the module.

    `device` is where the IPUs' tensors live, "cpu" or "cuda". `numerics` is "exact" or "ipu"; None keeps the current
    numerics, which start as "exact". Without `hardware`, ipuHardwareIsAvailable() is False. `popart` and `popdist`
    become stand-ins, unless they are already imported. A second call only replaces the machine and,
    if given, the numerics. Raises ImportError if the real PopTorch is loaded.
    """
    present = sys.modules.get("poptorch")
    if present is not None and not getattr(present, "__simulated__", False):
        raise ImportError("the real PopTorch is already imported in this process; start another process")
    machine.configure(num_ipus, device=device, hardware=hardware)
    if numerics is not None:
        set_numerics(numerics)
    if present is None:
        logs.start()
        _add_modules(_NAMES)
        setattr(torch.ops, "poptorch", torch_ops.Namespace())  # noqa: B010 (not in torch's type stubs)
    if "popart" not in sys.modules and "popdist" not in sys.modules:
        _add_modules(_STANDINS)
    if _is_missing("horovod"):
        _add_modules(_STANDINS_OF_MISSING)
    register_installer(install_if_missing)
    return sys.modules["poptorch"]


def install_if_missing(num_ipus: int, device: str, hardware: bool) -> None:
    """Installs the simulator in a process that another process has started, unless it already has the simulator."""
    if not installed():
        install(num_ipus, device=device, hardware=hardware)


def installed() -> bool:
    """Tells whether `import poptorch` gives the simulator."""
    return is_simulated("poptorch")


def install_in_children(num_ipus: int, *, device: str, hardware: bool, numerics: str) -> None:
    """Makes the Python processes that this process starts find the simulator too, each with the same kind of machine.

    Children of subprocess and of multiprocessing's spawn look for modules in PYTHONPATH and in a copy of sys.path.
    """
    settings = {"num_ipus": num_ipus, "device": device, "hardware": hardware, "numerics": numerics}
    os.environ[_ENVIRONMENT] = json.dumps(settings)
    shims = [str(SHIMS)] + ([str(_SHIMS_OF_MISSING)] if is_simulated("horovod") else [])
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry not in shims]
    os.environ["PYTHONPATH"] = os.pathsep.join(shims + given)
    sys.path[1:1] = [shim for shim in shims if shim not in sys.path]


def install_from_environment() -> None:
    """Replaces the modules in SHIMS by the simulator's, on the machine that the parent process chose."""
    for name in ("poptorch", "popart", "popdist", "horovod"):
        if str(SHIMS) in str(getattr(sys.modules.get(name), "__file__", "")):
            del sys.modules[name]
    install(**json.loads(os.environ.get(_ENVIRONMENT, "{}")))
    restore_removed()


# ------------------------------------------------------------------------------------- the modules


def _is_missing(name: str) -> bool:
    """Tells whether there is no such module outside SHIMS."""
    if name in sys.modules:
        return False
    spec = importlib.util.find_spec(name)
    return spec is None or str(SHIMS) in str(spec.origin)


class _Loader:
    """The loader in an installed module's spec: returns the module that already exists."""

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _add_modules(names: Dict[str, str]) -> None:
    for name, source in names.items():
        sources = [importlib.import_module(_SOURCE + part) for part in source.split(" ")]
        module = _module(name, sources, is_package="." not in name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _module(name: str, sources: List[ModuleType], *, is_package: bool) -> ModuleType:
    """Adds a module `name`, with a valid spec, that shares the names of `sources`."""
    module = ModuleType(name, sources[0].__doc__)
    own = ["__name__", "__spec__", "__loader__", "__package__", "__path__", "__file__", "__builtins__", "__cached__"]
    for source in reversed(sources):
        module.__dict__.update({key: value for key, value in source.__dict__.items() if key not in own})
    module.__file__ = sources[0].__file__
    loader: Any = _Loader()
    module.__spec__ = ModuleSpec(name, loader, is_package=is_package)
    module.__loader__ = loader
    module.__package__ = name if is_package else name.rpartition(".")[0]
    if is_package:
        module.__path__ = []
    sys.modules[name] = module
    return module

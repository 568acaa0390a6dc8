"""Builds the options and optimizers of all shipped configs with PopTorch's own Python front end.

Usage: `python benchmarks/poptorch_front_end.py CHECKOUT`, with a checkout of graphcore/poptorch and the environment
with torch 2.0.1 (`.venv-ipu-host`, made by `make test-ipu-host`). PopTorch's native module needs the Poplar SDK, so an
empty one stands in for it: what is checked is that PopTorch's Python classes accept every call and value, and that
every option has a name and a type that PopTorch's C++ side accepts, by the table of popart_compiler's
SessionOptions.cpp.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, Dict, List

import torch
from command import run_command

from vit_ipu.config import Config
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.model import ViT
from vit_ipu.simulator.options.session_options import validate

OPERATORS = torch.library.Library("poptorch", "DEF")
"""PopTorch's operators, which its native module would register; they exist as long as this object."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of graphcore/poptorch, branch sdk-release-3.4")
    checkout = parser.parse_args().checkout
    if not (checkout / "python" / "__init__.py").is_file():
        sys.exit(f"{checkout} is not a checkout of graphcore/poptorch: it lacks python/__init__.py; give its path")
    with tempfile.TemporaryDirectory() as folder:
        install_front_end(checkout, Path(folder))
        for name, path in shipped_configs().items():
            config = load_config(path)
            if not config.batch_sizes_left_out:  # which is for a GPU
                print(f"{name}: {', '.join(check(config))}")


def install_front_end(checkout: Path, folder: Path) -> None:
    """Makes `import poptorch` load the Python files of a checkout, over an empty native module."""
    package = folder / "poptorch"
    shutil.copytree(str(checkout / "python"), str(package))
    text = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(text.replace("@TORCH_VERSION@", torch.__version__.partition("+")[0]))
    sys.path.insert(0, str(folder))
    sys.modules["poptorch.poptorch_core"] = _EmptyModule("poptorch.poptorch_core")
    for name in ("begin_ipu_block", "end_ipu_block"):  # which the front end looks up when it is imported
        OPERATORS.define(f"{name}() -> ()")


class _EmptyModule(types.ModuleType):
    """A module in which every name is a class that takes any arguments."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {"__call__": lambda self, *args, **kwargs: None})
        setattr(self, name, made)
        return made


def check(config: Config) -> List[str]:
    """Builds the options and the optimizer of a config; returns what was checked. Raises if PopTorch refuses them."""
    from vit_ipu.backends.ipu.optimizer import build_optimizer
    from vit_ipu.backends.ipu.options import inference_options, training_options

    small = config.model.model_copy(update={"width": 2 * config.model.num_heads, "depth": 1})
    optimizer = build_optimizer(ViT(small), config)
    checked = [type(optimizer).__module__ + "." + type(optimizer).__name__]
    for options in (training_options(config), inference_options(config), training_options(config, offline=True)):
        values: Dict[str, Any] = options.toDict()
        validate(values)
        checked.append(f"{len(values)} options")
    return checked


if __name__ == "__main__":
    run_command(main)

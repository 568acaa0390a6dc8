"""Checks whether PopTorch and an IPU can be used here. PopTorch is loaded only if it would not assert."""

from __future__ import annotations

import importlib.util
import sys
from typing import Optional

import torch

TORCH = "2.0.1"
"""The only torch that PopTorch 3.3 and 3.4 accept (python/__init__.py:20)."""


def ipu_problem(*, offline: bool = False) -> Optional[str]:
    """Returns why --device ipu cannot be used, with the remedy, or None if it can. `offline`: no hardware is needed."""
    if getattr(sys.modules.get("poptorch"), "__simulated__", False):
        return "the PopTorch in this process is the simulator, not hardware: use --device ipu-sim"
    if importlib.util.find_spec("poptorch") is None:
        return (
            "PopTorch is not installed; it comes with the Poplar SDK, not from PyPI (docs/running_on_ipu.md). "
            "Use --device ipu-sim to simulate"
        )
    version = torch.__version__.partition("+")[0]
    if version != TORCH:
        return (
            f"PopTorch needs torch {TORCH} but this is {version}: pip install -c constraints-ipu.txt torch torchvision"
        )
    try:
        import poptorch
    except ImportError as error:
        return f"PopTorch cannot be loaded ({error}): source the SDK's enable.sh scripts first"
    if getattr(poptorch, "__simulated__", False):
        return "the installed PopTorch is a simulator, not hardware: use --device ipu-sim"
    if not offline and not poptorch.ipuHardwareIsAvailable():
        return "no IPU is available on this machine: check `gc-monitor`, or use --device ipu-sim to simulate"
    return None

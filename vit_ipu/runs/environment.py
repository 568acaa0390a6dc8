"""Environment that a result depends on: versions, commit, device, and whether the device was simulated."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Optional

import cv2

from vit_ipu import __version__
from vit_ipu.backends.build import describe_hardware
from vit_ipu.backends.contract import Device
from vit_ipu.config import Config

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "simplejpeg")


def environment(config: Config, device: Device) -> Dict[str, Any]:
    """Returns the environment of this process as values for JSON."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    versions["opencv"] = cv2.__version__  # several packages install it, under different names
    if "poptorch" in sys.modules and device.kind in ("ipu", "ipu-sim"):
        versions["poptorch"] = sys.modules["poptorch"].__version__
    return {
        "vit_ipu": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        **device.facts,
        "hardware": describe_hardware(device),
        "compute": config.precision.resolve_compute(device.kind),
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> Optional[str]:
    """Returns the commit of the checkout that this code runs from; None outside of a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()

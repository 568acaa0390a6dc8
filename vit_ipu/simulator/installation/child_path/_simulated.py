"""Installs the simulator in a child process of `python -m vit_ipu.simulator` when this module is imported."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import vit_ipu  # noqa: F401
except ImportError:  # the parent ran in the folder that contains vit_ipu
    sys.path.append(str(Path(__file__).resolve().parents[4]))

from vit_ipu.simulator.installation.install import install_from_environment

install_from_environment()

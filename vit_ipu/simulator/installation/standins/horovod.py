"""The package that contains the stand-in for `horovod.torch`."""

from __future__ import annotations

from typing import Any

from vit_ipu.simulator.errors import not_simulated

__simulated__ = True


def __getattr__(name: str) -> Any:
    raise not_simulated("horovod", name)

"""Compilation into the executable cache, without training."""

from __future__ import annotations

import time
from typing import Optional

from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Device
from vit_ipu.class_balance import class_weights
from vit_ipu.config import Config
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import UserError


def compile_program(
    config: Config, device: Device, *, offline: bool = False, cache: Optional[ListingCache] = None
) -> float:
    """Compiles the programs of training and evaluation for IPUs and returns the seconds that compilation took.

    With `offline` no IPU is needed: the programs are kept for later use. Over the simulator nothing is compiled, but
    PopTorch's rules are checked. The training images are listed, with `cache`, only if the loss has class weights.
    Raises UserError if the device is neither an IPU nor the simulator, or if a program for IPUs has no executable cache
    to be kept in.
    """
    if device.kind not in ("ipu", "ipu-sim"):
        raise UserError(f"compile is for IPUs, but --device is {device.name}: use ipu or ipu-sim")
    if device.kind == "ipu" and config.pipeline.executable_cache is None:
        raise UserError(
            "pipeline.executable_cache is null, so the compiled programs would be lost: give --set "
            "pipeline.executable_cache=FOLDER"
        )
    require_runnable_on(config, device, allow_synthetic=True)
    weights = None
    if config.optim.class_weights is not None:  # a compiled program may have them as constants
        source = open_source(config.data, config.model, "train", cache=cache)
        weights = class_weights(config, source.labels, source.classes)
    start = time.monotonic()
    with open_backend(config, device, offline=offline, class_weights=weights) as backend:
        backend.compile()
    return time.monotonic() - start

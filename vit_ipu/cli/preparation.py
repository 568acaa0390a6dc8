"""What commands and Python functions do before they print, load or make anything: devices, settings and paths are
checked, so that a mistake is the only line."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

from vit_ipu.backends.build import find_instances, require_runnable_on, resolve_device
from vit_ipu.backends.contract import Device
from vit_ipu.config import Config
from vit_ipu.data.sources.registry import require_images_at
from vit_ipu.errors import CheckpointError, UserError
from vit_ipu.report.page import write_report
from vit_ipu.run_config import run_folder_of
from vit_ipu.runs.folder import RunFolder
from vit_ipu.unused_options import unused_options
from vit_ipu.weights.fetch import require_source
from vit_ipu.weights.native import newest_checkpoint


def prepare(
    config: Config,
    device: str,
    *,
    numerics: Optional[str],
    offline: bool = False,
    training: bool = True,
    allow_synthetic: bool = False,
    images: bool = True,
    initial_weights: bool = False,
) -> Tuple[Device, List[str]]:
    """Returns the device, and notes on the config, once the device is known to run it and its paths exist.

    `images`: the images of the config will be read. `initial_weights`: those of model.init will be read. Raises
    UserError.
    """
    resolved = resolve_device(device, numerics=numerics, offline=offline)
    notes = require_runnable_on(config, resolved, training=training, allow_synthetic=allow_synthetic)
    if images:
        require_images_at(config.data)
    if initial_weights and config.model.init is not None:
        try:
            require_source(config.model.init, sha256=config.model.init_sha256)
        except CheckpointError as error:
            raise CheckpointError(f"model.init: {error}") from None
    return resolved, notes + unused_options(config, training=training)


def is_first_instance(config: Config, device: Device) -> bool:
    """Tells whether this is the only process of the run that writes files and shows results."""
    return find_instances(config, device).index == 0


@contextmanager
def report_if_failed(folder: RunFolder) -> Iterator[None]:
    """Writes the report of a run whose training, the body, fails; not for a mistake of the user, or under torchrun."""
    try:
        yield
    except UserError:
        raise
    except Exception:
        if os.environ.get("WORLD_SIZE", "1") == "1":  # torchrun may be about to end this process
            with suppress(UserError, OSError):  # the error of the run matters more
                write_report(folder)
        raise


def checkpoint_to_evaluate(config: Optional[Path], checkpoint: Optional[str]) -> str:
    """Returns the weights to evaluate: those that are given, or else the run that `config` names.

    A run means its best checkpoint, if it keeps one, and its newest whole one otherwise. Raises UserError if nothing is
    given, or if the weights do not exist.
    """
    if checkpoint is None:
        run = run_folder_of(config) if config is not None else None
        if run is None:
            raise UserError(
                "--checkpoint is missing: name a run, a checkpoint or weights to evaluate, or give a run folder "
                "instead of the config"
            )
        if newest_checkpoint(run / "checkpoints") is None:
            raise CheckpointError(f"{run} has no checkpoint yet: continue the run with --resume")
        return str(run)
    require_source(checkpoint)
    return checkpoint

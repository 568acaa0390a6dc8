"""Paths of files and folders that commands write, checked before anything is read or made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional

from vit_ipu.errors import UserError


def output_of_run(config: Path, output: Optional[Path], *, resume: bool, restart: bool) -> Path:
    """Returns the run folder to train in: `output`, or by the config's name.

    That is runs/NAME, or the first free one of runs/NAME-2, -3, ...; to resume or restart, the last that exists. A run
    folder in place of the config, or its config.yaml, means the run, which is itself resumed or restarted. Raises
    UserError if it would be trained again.
    """
    from vit_ipu.run_config import run_folder_of  # not above: it imports pydantic, and --help must be quick

    if output is not None:
        return output
    run = run_folder_of(config)
    if run is not None:
        if resume or restart:
            return run
        kind = "a run folder" if run == config else "the config of a run"
        raise UserError(
            f"{config} is {kind}: --resume continues the run, --restart trains it from the beginning, and --output "
            "FOLDER trains with its config in another folder"
        )
    paths = [Path("runs") / config.stem] + [Path("runs") / f"{config.stem}-{n}" for n in range(2, 10000)]
    taken = [path for path in paths if (path / "config.yaml").exists()]
    if resume or restart:
        return taken[-1] if taken else paths[0]
    return next(path for path in paths if path not in taken)


def note_on_earlier_run(config: Path, run: Path) -> List[str]:
    """Returns a note if the folder of the config's name has an earlier run, so that `output_of_run` chose `run`."""
    first = Path("runs") / config.stem
    if run == first:
        return []
    return [f"{first} has an earlier run, so the new one is in {run}; --resume continues the newest one"]


def require_parent(path: Path, option: str) -> None:
    """Raises UserError unless a file can be made at `path`, as far as its folder tells."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: {path.parent} is not a folder: make it first, or give another path")
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a file"
        raise UserError(f"{option} {path} is {kind}: give the path of a file")
    if not os.access(str(path.parent), os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {path.parent} cannot be written: give a path in another folder")


def require_folder(path: Path, option: str, content: str) -> None:
    """Raises UserError if `path` is there and is not a folder; `content` is what the folder is for."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path} is not a folder: give a folder for {content}")

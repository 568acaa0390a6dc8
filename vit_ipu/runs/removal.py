"""Removal of a run, so that it can be started again: only what this program wrote is ever removed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator, List, Optional

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.errors import ConfigError, UserError
from vit_ipu.files import REMOVING, TEMPORARY, lock, remove
from vit_ipu.runs.folder import RunFolder, differing_settings
from vit_ipu.text import escaped, reason_of

_WRITTEN = re.compile(
    r"config\.yaml|(environment|evaluation|best|diverged)\.json|metrics\.jsonl|skipped\.txt|report\.html|\.lock"
    r"|tensorboard/events\.out\.tfevents\.[^/]*"
    r"|examples/\d\d_[^/]*\.png"
    r"|checkpoints/([a-z]+-)?update-\d+/(model\.safetensors|optimizer\.safetensors|(state|config|checksums)\.json)"
)
"""Paths, relative to the run folder, of the files that a run writes."""


def remove_run(path: Path, config: Config) -> None:
    """Removes the folder of an earlier run of `config`. Raises UserError as `set_run_aside` does."""
    aside = set_run_aside(path, config)
    if aside is not None:
        remove(aside)


def set_run_aside(path: Path, config: Config) -> Optional[Path]:
    """Renames the folder of an earlier run of `config`, and returns its new path; None if it is missing or empty.

    Raises UserError, and renames nothing, if the folder is not that of a run of this config, if it holds a file that
    this program does not write, or if another process trains in it.
    """
    if not os.path.lexists(str(path)) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
        return None
    problem = _problem(path, config)
    if problem is not None:
        raise UserError(f"--restart: {path} {problem}; nothing was removed: give another --output")
    aside = path.with_name(f"{REMOVING}{path.name}")
    with RunFolder(path).lock_path.open("a", encoding="utf-8") as file:
        if not lock(file):
            raise UserError(f"another process is training in {path}: wait for it, or stop it")
        try:
            remove(aside)
            os.replace(str(path), str(aside))
        except OSError as error:
            raise UserError(f"--restart: cannot remove {path}: {reason_of(error)}") from None
    return aside


def _problem(path: Path, config: Config) -> Optional[str]:
    """Returns why the folder is not that of a run of `config`; None if it is."""
    if path.is_symlink() or not path.is_dir():
        return "is a link, not a run folder" if path.is_symlink() else "is not a run folder"
    if not (path / "config.yaml").is_file() or not (path / "checkpoints").is_dir():
        return "is not a run folder"
    for name in _files_in(path):
        if not _WRITTEN.fullmatch(name):
            return f"holds {escaped(name)}, which a run does not write"
    try:
        before = load_config(path / "config.yaml")
        changed = [*differing_settings(before, config), *_other_images(before, config)]
    except ConfigError as error:
        return f"has a config that cannot be read ({error})"
    return f"is a run of another config: {changed[0]} differs" if changed else None


def _files_in(folder: Path) -> Iterator[str]:
    """Yields the paths of all files and links below `folder`, relative to it, without what interrupted writes left."""
    for parent, folders, files in os.walk(str(folder)):
        folders[:] = [name for name in folders if not name.startswith((TEMPORARY, REMOVING))]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*files, *links]:
            if not name.startswith((TEMPORARY, REMOVING)):
                yield os.path.relpath(os.path.join(parent, name), str(folder))


def _other_images(before: Config, after: Config) -> List[str]:
    """Returns the keys of paths to images that differ: a resumed run checks that they hold the same ones."""
    return [f"data.{key}" for key in ("path", "eval_path") if getattr(before.data, key) != getattr(after.data, key)]

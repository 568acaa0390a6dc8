"""The folder of a run: resolved config, environment, metrics, checkpoints, examples and the report."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional, TextIO

from vit_ipu.config import Config
from vit_ipu.config_file import dump_config, load_config
from vit_ipu.errors import UserError
from vit_ipu.files import lock, write_whole
from vit_ipu.weights.native import newest_checkpoint


class RunFolder:
    """Paths and small files of one run; one process at a time trains in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.examples = path / "examples"
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"
        self._lock_path = path / ".lock"
        self._lock: Optional[TextIO] = None
        self._made: List[Path] = []

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """A new run. Raises UserError if the folder holds one, or files in its place, or cannot be written."""
        folder = cls(path)
        if folder.config.exists():
            raise UserError(f"{path} already holds a run: continue it with --resume, or give another --output")
        for ours in (folder.checkpoints, folder.examples, folder.environment, folder.metrics, folder.report):
            if ours.exists():
                raise UserError(f"{path} already holds {ours.name}: give another --output")
        try:
            folder._make_folders()
            folder._acquire()
            write_whole(folder.config, dump_config(config))
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror}") from None
        return folder

    @classmethod
    def reopen(cls, path: Path, config: Config) -> RunFolder:
        """An interrupted run to go on with. Raises UserError if there is none, or its config was another."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"--resume: no run in {path}: start it without --resume")
        for key, before, now in _differences(load_config(folder.config), config):
            raise UserError(
                f"--resume: {path} was started with {key} {before}, not {now}: resume with the same config, or give "
                "another --output"
            )
        try:
            folder._acquire()
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror}") from None
        return folder

    def begin(self, facts: Dict[str, Any]) -> None:
        """Notes the environment, once the run is sure to start; a resumed run keeps that of its beginning first."""
        if self.environment.is_file():
            first = self.read_environment()
            facts = dict(first, resumed=[*first.get("resumed", []), facts])
        write_whole(self.environment, json.dumps(facts, indent=1))

    def read_environment(self) -> Dict[str, Any]:
        """The facts that `begin` wrote. Raises UserError if they are not there or damaged."""
        try:
            facts = json.loads(self.environment.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run folder: it has no environment.json") from None
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or "simulated" not in facts:
            raise UserError(f"{self.environment} is damaged")
        return facts

    def release(self) -> None:
        """Lets another process train here; takes the folder of a run that never began away, as far as it is ours."""
        if self._lock is not None:
            self._lock.close()
        if self.environment.exists():
            return
        for path in (self.config, self._lock_path):
            with suppress(FileNotFoundError):
                path.unlink()
        for path in reversed(self._made):
            with suppress(OSError):  # it holds something that is not ours
                path.rmdir()

    def newest_checkpoint(self) -> Optional[Path]:
        return newest_checkpoint(self.checkpoints)

    def _make_folders(self) -> None:
        missing = [path for path in (self.checkpoints, *self.checkpoints.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def _acquire(self) -> None:
        self._lock = self._lock_path.open("a", encoding="utf-8")
        if not lock(self._lock):
            raise UserError(f"another process is training in {self.path}: wait for it, or stop it")


# Settings that a resumed run may change: they do not touch what it computes.
_MAY_CHANGE = {
    "run.keep_checkpoints",
    "run.log_every",
    "run.tracking",
    "run.evaluate_every",
    "run.checkpoint_every",
    "data.num_workers",
    "data.path",
    "data.eval_path",
    "pipeline.executable_cache",
    "pipeline.profile",
}


def _differences(before: Config, after: Config) -> List[tuple[str, Any, Any]]:
    """Each setting that differs and may not: its key, and its value then and now."""
    old, new = (config.model_dump(mode="json") for config in (before, after))
    return [
        (f"{section}.{key}", value, new[section][key])
        for section, values in old.items()
        for key, value in values.items()
        if f"{section}.{key}" not in _MAY_CHANGE and value != new[section][key]
    ]

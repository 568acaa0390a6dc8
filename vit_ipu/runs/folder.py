"""Folder of a run: resolved config, environment, metrics, checkpoints, examples and the report."""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, TextIO, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import dump_config, load_config
from vit_ipu.errors import UserError
from vit_ipu.files import lock, write_whole
from vit_ipu.text import reason_of
from vit_ipu.weights.native import newest_checkpoint


class RunFolder:
    """Paths and small files of one run; only one process at a time trains in the folder."""

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
        """Files and folders that this process has made for a run that has not started yet."""

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Makes the folder of a new run. Raises UserError if the folder has files of a run, or cannot be written."""
        folder = cls(path)
        if folder.config.exists():
            raise UserError(f"{path} already holds a run: continue it with --resume, or give another --output")
        for reserved in (folder.checkpoints, folder.examples, folder.environment, folder.metrics, folder.report):
            if reserved.exists():
                raise UserError(f"{path} already holds {reserved.name}: give another --output")
        with folder._released_on_error():
            folder._make_folders()
            folder._acquire()
            folder._made.append(folder.config)
            write_whole(folder.config, dump_config(config))
        return folder

    @classmethod
    def reopen(cls, path: Path, config: Config) -> RunFolder:
        """Opens the folder of an interrupted run. Raises UserError if it has no run, or a run with another config."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(f"--resume: there is no run in {path}: start one without --resume")
        for key, before, now in _differences(load_config(folder.config), config):
            raise UserError(
                f"--resume: {path} was started with {key} {before}, not {now}: resume with the same config, or start "
                "a new run with another --output"
            )
        with folder._released_on_error():
            folder._acquire()
        return folder

    def begin(self, facts: Dict[str, Any]) -> None:
        """Writes the environment once the run is sure to start; a resumed run adds to that of its first start."""
        if self.environment.is_file():
            first = self.read_environment()
            facts = dict(first, resumed=[*first.get("resumed", []), facts])
        write_whole(self.environment, json.dumps(facts, indent=1))
        self._made.clear()  # the run has started: its files stay

    def read_environment(self) -> Dict[str, Any]:
        """Returns the environment that `begin` wrote. Raises UserError if its file is missing or damaged."""
        try:
            facts = json.loads(self.environment.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} is not a run folder: it does not contain environment.json") from None
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or "simulated" not in facts:
            raise UserError(f"{self.environment} is damaged: it must be the JSON object that the run wrote")
        return facts

    def release(self) -> None:
        """Removes what this process made for a run that never started; unlocks the folder for other processes."""
        for path in reversed(self._made):
            with suppress(OSError):  # a folder that holds other files, or a file that is gone
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
        self._made.clear()
        if self._lock is not None:
            self._lock.close()

    def newest_checkpoint(self) -> Optional[Path]:
        return newest_checkpoint(self.checkpoints)

    @contextmanager
    def _released_on_error(self) -> Iterator[None]:
        """Releases the folder if the body raises; an OSError becomes a UserError that names the folder."""
        try:
            yield
        except OSError as error:
            self.release()
            raise UserError(f"cannot write the run folder {self.path}: {reason_of(error)}") from None
        except BaseException:
            self.release()
            raise

    def _make_folders(self) -> None:
        missing = [path for path in (self.checkpoints, *self.checkpoints.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def _acquire(self) -> None:
        if not self._lock_path.exists():
            self._made.append(self._lock_path)
        self._lock = self._lock_path.open("a", encoding="utf-8")
        if not lock(self._lock):
            self._made.clear()  # the other process needs them
            raise UserError(f"another process is training in {self.path}: wait for it, or stop it")


# Settings that a resumed run may change, because the weights do not depend on them.
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


def _differences(before: Config, after: Config) -> List[Tuple[str, Any, Any]]:
    """Returns the key, the value before and the value now of each setting that must not differ but does."""
    old, new = (config.model_dump(mode="json") for config in (before, after))
    return [
        (f"{section}.{key}", value, new[section][key])
        for section, values in old.items()
        for key, value in values.items()
        if f"{section}.{key}" not in _MAY_CHANGE and value != new[section][key]
    ]

"""Folder of a run: resolved config, environment, metrics, checkpoints, examples and the report."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, TextIO, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import dump_config, load_config
from vit_ipu.errors import ConfigError, UserError, suggest
from vit_ipu.files import REMOVING, TEMPORARY, expand_home, is_within, lock, remove_leftovers, write_whole
from vit_ipu.small_files import read_json
from vit_ipu.text import Notify, reason_of
from vit_ipu.weights.native import BEST, newest_checkpoint


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
        self.evaluation = path / "evaluation.json"
        self.skipped = path / "skipped.txt"
        self.best = path / BEST
        self.divergence = path / "diverged.json"
        self.lock_path = path / ".lock"
        self._lock: Optional[TextIO] = None
        self._made: List[Path] = []
        """Files and folders that this process has made for a run that has not started yet."""
        self._changed: Dict[str, Tuple[Any, Any]] = {}
        """Settings, with the values before and now, whose change the user has accepted."""
        self._changed_config: Optional[Config] = None

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Makes the folder of a new run. Raises UserError if the folder has files of a run, or cannot be written.

        What a start that was killed has left, empty folders and a lock, is used again.
        """
        folder = cls(path)
        with folder._released_on_error():  # such as a name that is too long
            folder._require_own_checkpoints()
        folder._require_place_outside_of_classes(config)
        if folder.config.exists():
            raise UserError(f"{path} already holds a run: continue it with --resume, or give another --output")
        for reserved in folder._reserved():
            raise UserError(f"{path} already holds {reserved.name}: give another --output")
        with folder._released_on_error():
            folder._make_folders()
            folder._acquire()
            folder._made.append(folder.config)
            write_whole(folder.config, dump_config(config))
        return folder

    @classmethod
    def reopen(
        cls, path: Path, config: Config, *, allowed: Sequence[str] = (), notify: Notify = lambda text: None
    ) -> RunFolder:
        """Opens the folder of an interrupted run; starts the run if it was killed before its config was written.

        `allowed` are keys, such as `optim.learning_rate`, that may differ from the run's config; `notify` receives a
        note on each that does. Raises UserError if the folder has no run, or a run with another config.
        """
        _require_known(allowed)
        folder = cls(path)
        with folder._released_on_error():
            folder._require_own_checkpoints()
        if folder._was_never_begun():
            return cls.create(path, config)
        before = folder._read_config()
        folder._accept(differing_settings(before, config), allowed, notify)
        if before.model_dump() != config.model_dump():
            folder._changed_config = config
        with folder._released_on_error():
            folder._acquire()
        return folder

    def _require_own_checkpoints(self) -> None:
        """Raises UserError if the folder of the checkpoints is a link: a run writes only into its own folder."""
        if self.checkpoints.is_symlink():
            raise UserError(
                f"{self.checkpoints} is a link, and a run writes only into its own folder: replace it by the folder "
                "that it names"
            )

    def _require_place_outside_of_classes(self, config: Config) -> None:
        """Raises UserError if the run would be written among class folders, where it would be taken for a class."""
        images, has_classes = config.data.path, config.data.source == "imagefolder" and config.data.holdout is not None
        if images is not None and has_classes and is_within(self.path, expand_home(images)):
            raise UserError(
                f"the run folder {self.path} is in data.path {images}, whose folders are classes: give an --output "
                "outside of it"
            )

    def _read_config(self) -> Config:
        """Returns the config that the run was started with. Raises UserError if it is missing or damaged."""
        restore = "restore config.yaml, for example from the config that the run was started with"
        if not self.config.is_file():
            if self.newest_checkpoint() is not None:
                raise UserError(f"--resume: there is no run in {self.path}, only checkpoints: {restore}")
            raise UserError(f"--resume: there is no run in {self.path}: start one without --resume")
        try:
            return load_config(self.config)
        except ConfigError as error:
            raise ConfigError(f"--resume: {error}; {restore}") from None

    def _accept(self, changed: Dict[str, Tuple[Any, Any]], allowed: Sequence[str], notify: Notify) -> None:
        """Notes the changes that are allowed. Raises UserError, which names all others, if there are others."""
        others = [f"{key} {before}, not {now}" for key, (before, now) in changed.items() if key not in allowed]
        if others:
            raise UserError(
                f"--resume: {self.path} was started with {'; '.join(others)}: resume with the same config, accept a "
                "change with --allow-config-change KEY, or start a new run with another --output"
            )
        for key, (before, now) in changed.items():
            notify(f"note: {key} is {now} from here on; {self.path} was started with {before}")
        self._changed = changed

    def begin(self, facts: Dict[str, Any]) -> None:
        """Writes the environment once the run is sure to start; a resumed run adds to that of its first start.

        Changes of the config that had to be accepted are noted there, and all changes are made in config.yaml.
        """
        if self._changed:
            facts = dict(facts, config_changes={key: list(values) for key, values in self._changed.items()})
        if self.environment.is_file():
            first = self.read_environment()
            facts = dict(first, resumed=[*first.get("resumed", []), facts])
        else:
            self._made.append(self.environment)  # it can be there even if its writing fails afterwards
        write_whole(self.environment, json.dumps(facts, indent=1))
        if self._changed_config is not None:
            write_whole(self.config, dump_config(self._changed_config))
        self._made.clear()  # the run has started: its files stay

    def read_environment(self) -> Dict[str, Any]:
        """Returns the environment that `begin` wrote. Raises UserError if its file is missing or damaged."""
        try:
            facts = read_json(self.environment, allow_nan=True)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path} is not a run folder: it does not contain environment.json") from None
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or "simulated" not in facts:
            raise UserError(
                f"{self.environment} is damaged: it must be the JSON object that the run wrote; remove it to resume"
            )
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

    def _files(self) -> Tuple[Path, ...]:
        """Returns the files that this program writes directly into the folder, except the lock."""
        written = (self.metrics, self.evaluation, self.skipped, self.report, self.best, self.divergence)
        return (self.config, self.environment, *written)

    def _reserved(self) -> List[Path]:
        """Returns what is in the folder under the names of a run's files, and is not what a killed start leaves."""
        found = [path for path in (*self._files(), self.examples) if path.exists()]
        is_used = self.checkpoints.exists() and not (self.checkpoints.is_dir() and _is_empty(self.checkpoints))
        return [self.checkpoints, *found] if is_used else found

    def _was_never_begun(self) -> bool:
        """Tells whether the folder is what a start leaves that was killed before it had written config.yaml."""
        is_ours = self.lock_path.is_file() or self.checkpoints.is_dir() or (self.path.is_dir() and _is_empty(self.path))
        return is_ours and not self._reserved()

    def _make_folders(self) -> None:
        missing = [path for path in (self.checkpoints, *self.checkpoints.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def _acquire(self) -> None:
        if not self.lock_path.exists():
            self._made.append(self.lock_path)
        self._lock = open(str(self.lock_path), "a", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        if not lock(self._lock):
            self._made.clear()  # the other process needs them
            raise UserError(f"another process is training in {self.path}: wait for it, or stop it")
        for path in self._files():
            remove_leftovers(self.path, path.name)
        remove_leftovers(self.checkpoints)


def _open_no_link(path: str, flags: int) -> int:
    """Opens a file, but not the target of a link, which is not part of the run, and does not wait at a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _is_empty(folder: Path) -> bool:
    """Tells whether a folder holds nothing but what interrupted writes and removals leave."""
    return all(path.name.startswith((TEMPORARY, REMOVING)) for path in folder.iterdir())


# Settings that a resumed run may change, because the weights do not depend on them.
_MAY_CHANGE = {
    "run.keep_checkpoints",
    "run.keep_best",
    "run.log_every",
    "run.max_loss_factor",
    "run.tracking",
    "run.evaluate_every",
    "run.evaluate_at_start",
    "run.checkpoint_every",
    "run.early_stopping",
    "run.early_stopping_margin",
    "data.num_workers",
    "data.path",
    "data.eval_path",
    "pipeline.executable_cache",
    "pipeline.profile",
}
# Settings that no resumed run can change: the saved tensors, or the position in the images, would not fit.
_CANNOT_CHANGE = {
    "model.width",
    "model.depth",
    "model.num_heads",
    "model.patch_size",
    "model.mlp_ratio",
    "model.image_size",
    "model.num_classes",
    "model.representation_size",
    "pipeline.global_batch_size",
    "pipeline.device_iterations",
    "optim.optimizer",
    "optim.freeze",
}


def _require_known(allowed: Sequence[str]) -> None:
    """Raises UserError unless all keys to allow are keys of a config that a resumed run can change."""
    for key in allowed:
        section, _, name = key.partition(".")
        if section not in Config.model_fields:
            raise UserError(
                f"--allow-config-change {key}: expected section.key; there is no section "
                f"{section!r}{suggest(section, Config.model_fields)}"
            )
        known = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        if name not in known:
            raise UserError(f"--allow-config-change {key}: {section} has no key {name!r}{suggest(name, known)}")
        if key in _CANNOT_CHANGE:
            raise UserError(
                f"--allow-config-change {key}: a checkpoint does not fit another {key}: start a new run, with "
                "model.init set to the checkpoint to keep its weights"
            )


def differing_settings(before: Config, after: Config) -> Dict[str, Tuple[Any, Any]]:
    """Returns the values before and now of each setting that must not differ but does, by its key."""
    old, new = (config.model_dump(mode="json") for config in (before, after))
    return {
        f"{section}.{key}": (value, new[section][key])
        for section, values in old.items()
        for key, value in values.items()
        if f"{section}.{key}" not in _MAY_CHANGE and value != new[section][key]
    }

"""The folder of a run: resolved config, environment, metrics, checkpoints, examples and the report."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional

from typing_extensions import Protocol

from vit_ipu import __version__
from vit_ipu.backends import Device, describe_hardware
from vit_ipu.checkpoints.run_state import newest_checkpoint
from vit_ipu.config import Config, UserError
from vit_ipu.config_file import dump_config, load_config
from vit_ipu.pipeline import resolve_compute


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.examples = path / "examples"
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"
        self._made: List[Path] = []

    @classmethod
    def create(cls, path: Path, config: Config, device: Device) -> "RunFolder":
        """A new run. Raises UserError if the folder holds one already or cannot be written."""
        folder = cls(path)
        if folder.config.exists():
            raise UserError("{} already holds a run: continue it with --resume, or give another --output".format(path))
        try:
            folder._make_folders()
            folder.config.write_text(dump_config(config), encoding="utf-8")
        except OSError as error:
            raise UserError("cannot write the run folder {}: {}".format(path, error.strerror)) from None
        folder._write_environment(config, device)
        return folder

    @classmethod
    def reopen(cls, path: Path, config: Config, device: Device) -> "RunFolder":
        """An interrupted run to go on with. Raises UserError if there is none, or its config was another."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError("--resume: no run in {}: start it without --resume".format(path))
        differing = _differences(load_config(folder.config), config)
        if differing:
            raise UserError("--resume: {} was started with another {}".format(path, ", ".join(differing)))
        folder._write_environment(config, device)
        return folder

    def discard_unused(self) -> None:
        """Takes a new run's first files away again, unless it has written a metric or a checkpoint."""
        if read_metrics(self.metrics) or self.newest_checkpoint():
            return
        for path in (self.config, self.environment, self.metrics):
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
            path.mkdir()
            self._made.append(path)

    def _write_environment(self, config: Config, device: Device) -> None:
        self.environment.write_text(json.dumps(environment(config, device), indent=1), encoding="utf-8")


# Settings that a resumed run may change: they do not touch what it computes.
_MAY_CHANGE = {
    "run.keep_checkpoints",
    "run.log_every",
    "run.tracking",
    "run.evaluate_every",
    "run.checkpoint_every",
    "data.num_workers",
    "data.path",
    "pipeline.executable_cache",
    "pipeline.profile",
}


def _differences(before: Config, after: Config) -> List[str]:
    old, new = (config.model_dump(mode="json") for config in (before, after))
    keys = ("{}.{}".format(section, key) for section, values in old.items() for key in values)
    return [k for k in keys if k not in _MAY_CHANGE and _value(old, k) != _value(new, k)]


def _value(values: Dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return values[section][name]


def environment(config: Config, device: Device) -> Dict[str, Any]:
    """What a result depends on beside the config."""
    versions = {name: _version(name) for name in ("torch", "torchvision", "numpy", "poptorch")}
    return {
        "vit_ipu": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version is not None},
        "platform": platform.platform(),
        "device": str(device),
        "hardware": describe_hardware(device),
        "simulated": device.simulated,
        "compute": resolve_compute(config.precision.compute, device.kind),
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _version(name: str) -> Optional[str]:
    module = sys.modules.get(name)
    return str(module.__version__) if module is not None else None


def _commit() -> Optional[str]:
    """The commit of the checkout that this code runs from, if it is one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


# ---------------------------------------------------------------------------------------- metrics


class Metrics:
    """metrics.jsonl, one JSON object a line, and the tracker of the config."""

    def __init__(self, folder: RunFolder, config: Config, *, resumed_at: int) -> None:
        """Lines after update `resumed_at` belong to work that a resumed run does again, and are dropped."""
        kept = [line for line in read_metrics(folder.metrics) if line["update"] <= resumed_at]
        temporary = folder.metrics.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(str(temporary), str(folder.metrics))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._tracker = _TRACKERS[config.run.tracking](folder, config)

    def write(self, line: Dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._tracker.write(line)

    def close(self) -> None:
        self._file.close()
        self._tracker.close()


def read_metrics(path: Path) -> List[Dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


class Tracker(Protocol):
    """Where metrics go beside metrics.jsonl."""

    def write(self, line: Dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _NoTracker:
    def __init__(self, folder: RunFolder, config: Config) -> None:
        pass

    def write(self, line: Dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, folder: RunFolder, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))  # type: ignore[no-untyped-call]

    def write(self, line: Dict[str, Any]) -> None:
        for name, value in _measured(line).items():
            self._writer.add_scalar(name, value, line["update"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _WandB:
    """Weights & Biases; WANDB_MODE=offline keeps the run on this machine."""

    def __init__(self, folder: RunFolder, config: Config) -> None:
        import wandb

        self._run = wandb.init(
            project="vit_ipu", name=folder.path.name, dir=str(folder.path), config=config.model_dump(mode="json")
        )

    def write(self, line: Dict[str, Any]) -> None:
        self._run.log(_measured(line), step=line["update"])

    def close(self) -> None:
        self._run.finish()


def _measured(line: Dict[str, Any]) -> Dict[str, float]:
    return {name: value for name, value in line.items() if name not in ("update", "host_step")}


_TRACKERS: Dict[str, Any] = {"none": _NoTracker, "tensorboard": _TensorBoard, "wandb": _WandB}


def require_tracking(config: Config) -> None:
    """Raises UserError if the package of run.tracking is not installed."""
    if config.run.tracking == "none":
        return
    try:
        importlib.import_module(config.run.tracking)
    except ImportError:
        raise UserError(
            "run.tracking {} needs a package: pip install 'vit-ipu[tracking]'".format(config.run.tracking)
        ) from None

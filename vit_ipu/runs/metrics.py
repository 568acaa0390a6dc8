"""Metrics of a run: the file metrics.jsonl, and a tracker."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, List

from typing_extensions import Protocol

from vit_ipu.config import Config
from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.runs.folder import RunFolder
from vit_ipu.small_files import open_regular, parse_json

_LONGEST_LINE = 1 << 16
"""Bytes of a line of metrics.jsonl; ours have about 200."""
_NUMBERS = frozenset(
    ("host_step", "samples", "loss", "learning_rate", "images_per_second", "top1", "top5", "evaluation_loss")
)


class Metrics:
    """Writer of metrics.jsonl, one JSON object per line, and of the tracker of the config."""

    def __init__(self, folder: RunFolder, config: Config, *, resumed_at: int) -> None:
        """Opens metrics.jsonl and drops lines after update `resumed_at`, because a resumed run writes them again."""
        lines = _lines_until(folder.metrics, resumed_at)
        write_whole(folder.metrics, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._tracker = _TRACKERS[config.run.tracking](folder, config)

    def write(self, line: Dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._tracker.write(line)

    def close(self) -> None:
        self._file.close()
        self._tracker.close()


def evaluations_until(path: Path, update: int) -> List[Dict[str, Any]]:
    """Returns the lines of a metrics.jsonl up to an update that have an evaluation."""
    return [line for line in _lines_until(path, update) if "top1" in line]


def _lines_until(path: Path, update: int) -> List[Dict[str, Any]]:
    return [line for line in read_metrics(path) if line["update"] <= update]


def read_metrics(path: Path) -> List[Dict[str, Any]]:
    """Returns the lines of a metrics.jsonl before the first damaged line, such as a last line that a crash cut off."""
    lines: List[Dict[str, Any]] = []
    if not path.is_file():
        return lines
    with open_regular(path) as file:
        for encoded in iter(lambda: file.readline(_LONGEST_LINE), b""):
            try:
                line = parse_json(encoded.decode("utf-8"), allow_nan=True)
            except ValueError:  # Unicode's errors are ValueErrors
                break
            if not _is_whole(line):
                break
            lines.append(line)
    return lines


def _is_whole(line: Any) -> bool:
    """Tells whether a line has what readers of metrics use, as numbers."""
    if not isinstance(line, dict) or not isinstance(line.get("update"), int) or not 0 <= line["update"] < 1 << 62:
        return False
    needed = {"samples"} if "loss" in line else set()
    if "top1" in line:
        needed |= {"top5", "evaluation_loss"}
    return needed <= set(line) and all(isinstance(line[key], (int, float)) for key in _NUMBERS & set(line))


class Tracker(Protocol):
    """Receiver of the metrics in addition to metrics.jsonl."""

    def write(self, line: Dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _NoTracker:
    def write(self, line: Dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _TensorBoard:
    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))  # type: ignore[no-untyped-call]

    def write(self, line: Dict[str, Any]) -> None:
        for name, value in _measured(line).items():
            self._writer.add_scalar(name, value, line["update"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _WandB:
    """Tracker for Weights & Biases; WANDB_MODE=offline keeps the run on this machine."""

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


_TRACKERS: Dict[str, Callable[[RunFolder, Config], Tracker]] = {
    "none": lambda folder, config: _NoTracker(),
    "tensorboard": lambda folder, config: _TensorBoard(folder),
    "wandb": _WandB,
}


def require_tracking(config: Config) -> None:
    """Raises UserError if the package of run.tracking is not installed."""
    if config.run.tracking == "none":
        return
    try:
        importlib.import_module(config.run.tracking)
    except ImportError:
        raise UserError(
            f"run.tracking {config.run.tracking} needs a package: pip install 'vit-ipu[tracking]'"
        ) from None

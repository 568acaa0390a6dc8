"""Metrics of a run: the file metrics.jsonl, and a tracker."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from typing_extensions import Protocol

from vit_ipu.config import Config
from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.runs.folder import RunFolder
from vit_ipu.small_files import open_regular, parse_json
from vit_ipu.text import Notify, counted

_LONGEST_LINE = 1 << 16
"""Bytes of a line of metrics.jsonl; ours have about 200."""
_MOST_DAMAGED = 100
"""Damaged lines of metrics.jsonl after which reading stops: it may be another file, of any size."""
_NUMBERS = frozenset(
    (
        "host_step",
        "samples",
        "overflows",
        "loss",
        "learning_rate",
        "images_per_second",
        "top1",
        "top5",
        "evaluation_loss",
    )
)


class Metrics:
    """Writer of metrics.jsonl, one JSON object per line, and of the tracker of the config."""

    def __init__(self, folder: RunFolder, config: Config, *, resumed_at: int, notify: Notify) -> None:
        """Opens metrics.jsonl and drops lines after update `resumed_at`, because a resumed run writes them again.

        `notify` receives a warning on lines that are damaged.
        """
        lines = _lines_until(folder.metrics, resumed_at, notify)
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


def overflows_until(path: Path, update: int) -> int:
    """Returns the number of float16 overflows that the lines of a metrics.jsonl up to an update count."""
    return sum_of_overflows(_lines_until(path, update)) or 0


def sum_of_overflows(lines: Sequence[Dict[str, Any]]) -> Optional[int]:
    """Returns the number of float16 overflows that lines of a metrics.jsonl count; None if they do not."""
    counts = [line["overflows"] for line in lines if "overflows" in line]
    return sum(counts) if counts else None


def _lines_until(path: Path, update: int, notify: Notify = lambda text: None) -> List[Dict[str, Any]]:
    return [line for line in read_metrics(path, notify=notify) if line["update"] <= update]


def read_metrics(path: Path, *, notify: Notify = lambda text: None) -> List[Dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, without damaged ones, such as a last line that a crash cut off.

    `notify` receives a warning on damaged lines before others.
    """
    lines: List[Dict[str, Any]] = []
    if not path.is_file():
        return lines
    num_damaged = num_inside = 0
    with open_regular(path) as file:
        for encoded in iter(lambda: file.readline(_LONGEST_LINE), b""):
            line = _parsed(encoded)
            if line is not None:
                lines.append(line)
                num_inside = num_damaged
            elif num_damaged == _MOST_DAMAGED:
                break
            else:
                num_damaged += 1
    if num_inside:
        notify(f"warning: {path} has {counted(num_inside, 'damaged line')}, left out from here on")
    return lines


def _parsed(encoded: bytes) -> Optional[Dict[str, Any]]:
    """Returns the values of a line, or None if the line is damaged."""
    try:
        line: Dict[str, Any] = parse_json(encoded.decode("utf-8"), allow_nan=True)
    except ValueError:  # Unicode's errors are ValueErrors
        return None
    return line if _is_whole(line) else None


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

        _replace_link(folder.path / "tensorboard")
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

        _replace_link(folder.path / "wandb")
        self._run = wandb.init(
            project="vit_ipu", name=folder.path.name, dir=str(folder.path), config=config.model_dump(mode="json")
        )

    def write(self, line: Dict[str, Any]) -> None:
        self._run.log(_measured(line), step=line["update"])

    def close(self) -> None:
        self._run.finish()


def _replace_link(folder: Path) -> None:
    """Removes a link in the place of a folder, because its target is not part of the run."""
    if folder.is_symlink():
        folder.unlink()


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

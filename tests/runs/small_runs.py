"""Small runs, trained in this process without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from helpers import tiny_config

from vit_ipu.backends.build import resolve_device
from vit_ipu.config import Config
from vit_ipu.evaluate import Evaluation
from vit_ipu.runs import logger
from vit_ipu.runs.checkpoint import Progress
from vit_ipu.runs.display import NoDisplay
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.train import Summary, open_run_folder, train


class Lines(NoDisplay):
    """Display that keeps the lines of text."""

    def __init__(self) -> None:
        self.lines: List[str] = []

    def notify(self, text: str) -> None:
        self.lines.append(text)


def small_config(**run: Any) -> Config:
    """Returns a config of 8 updates with dropout and AdamW, so that resuming needs the complete state."""
    return tiny_config(
        model={"dropout": 0.1},
        optim={"optimizer": "adamw", "learning_rate": 1e-3, "warmup_updates": 2},
        run={"updates": 8, **run},
    )


def train_in(path: Path, config: Config, *, resume: bool = False, **options: Any) -> Tuple[Summary, List[str]]:
    """Trains in the run folder on the CPU; returns the summary and the lines that were shown."""
    display = Lines()
    with open_run_folder(path, config, resume=resume, notify=display.notify, **options) as folder:
        summary = train(config, resolve_device("cpu"), folder, display=display, resume=resume)
    return summary, display.lines


def choose_evaluations(monkeypatch: pytest.MonkeyPatch, top1: Dict[int, float]) -> None:
    """Makes evaluations yield a pretended top-1 at each update.

    The loss falls as top-1 rises; top-5 is 100 minus top-1.
    """
    original, updates = logger.RunLogger.evaluate, []

    def evaluate(self: Any, progress: Progress, *args: Any) -> None:
        updates.append(progress.update)
        original(self, progress, *args)

    def evaluation(backend: Any, batches: Any, **_: Any) -> Evaluation:
        value = top1[updates[-1]]
        return Evaluation(value, 100 - value, 5 - value / 10, sum(map(len, batches)))

    monkeypatch.setattr(logger.RunLogger, "evaluate", evaluate)
    monkeypatch.setattr(logger, "evaluate_batches", evaluation)


def metrics_without_times(path: Path) -> List[Any]:
    """Returns the lines of a run's metrics.jsonl without the values that depend on time."""
    lines = read_metrics(path / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def names_in(path: Path) -> List[str]:
    return sorted(part.name for part in path.iterdir())

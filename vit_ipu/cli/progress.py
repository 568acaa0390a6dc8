"""Progress of commands on the terminal: a bar, or plain lines if the output is not a terminal."""

from __future__ import annotations

import time
from typing import Any, Dict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class TrainingBar:
    """TrainingDisplay with updates done, loss, learning rate, images per second and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total, self._last_line = 0, 0.0
        self._bar = Progress(
            TextColumn("update"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("lr {task.fields[learning_rate]:.2e}"),
            TextColumn("{task.fields[images_per_second]:,.0f} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def start(self, total_updates: int, *, done: int) -> None:
        self._total = total_updates
        fields = {"loss": float("nan"), "learning_rate": 0.0, "images_per_second": 0.0}
        self._task = self._bar.add_task("train", total=total_updates, completed=done, **fields)  # type: ignore[arg-type]
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        fields = {"loss": loss, "learning_rate": learning_rate, "images_per_second": images_per_second}
        self._bar.update(self._task, completed=update, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or update == self._total
        if due and not self._console.is_terminal:
            self._last_line = now
            self.notify(
                f"update {update} of {self._total}: loss {loss:.4f}, learning rate {learning_rate:.2e}, "
                f"{images_per_second:,.0f} images/s"
            )

    def notify(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class CountBar:
    """Progress bar with the number of items of each kind that are done, and the time left."""

    def __init__(self, console: Console, unit: str, *, quiet: bool = False) -> None:
        self._console, self._unit, self._quiet = console, unit, quiet
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: Dict[str, Any] = {}

    def __enter__(self) -> CountBar:
        self._bar.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Shows that `done` of `total` items of `what` are done."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and not (self._quiet or self._console.is_terminal):
            self._last_line = now
            text = f"{what}: {done:,} of {total:,} {self._unit}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

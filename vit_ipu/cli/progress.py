"""Progress of commands on the terminal: a bar, or plain lines if the output is not a terminal."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vit_ipu.text import counted, lasting

_SECONDS_BETWEEN_LINES = 10.0
_UNBOUNDED = 10_000
"""Columns of a terminal on which every layout has room."""


class _FittingProgress(Progress):
    """Progress bar with as much as the terminal has room for, also after its width has changed."""

    def __init__(self, layouts: Sequence[Sequence[Any]], console: Console, *, disable: bool) -> None:
        """`layouts` are the columns to show, widest first; the last one is taken if none has room."""
        super().__init__(console=console, disable=disable)
        self._layouts = layouts

    def get_renderables(self) -> Iterable[RenderableType]:
        if not self.tasks:  # also while the base class is being made
            return
        for layout in self._layouts:
            self.columns = tuple(layout)
            table = self.make_tasks_table(self.tasks)
            unbounded = self.console.options.update(max_width=_UNBOUNDED)
            if Measurement.get(self.console, unbounded, table).maximum <= self.console.width:
                break
        yield table


def _training_layouts() -> Sequence[Sequence[Any]]:
    update, counts, left = TextColumn("update"), MofNCompleteColumn(), TextColumn("left")
    elapsed, remaining = TimeElapsedColumn(), TimeRemainingColumn()
    loss, rate = TextColumn("loss {task.fields[loss]:.4f}"), TextColumn("lr {task.fields[learning_rate]:.2e}")
    speed = TextColumn("{task.fields[speed]} images/s")
    short_loss, short_speed = TextColumn("{task.fields[loss]:.4f}"), TextColumn("{task.fields[speed]}/s")
    return (
        (update, counts, BarColumn(bar_width=24), loss, rate, speed, elapsed, left, remaining),
        (update, counts, BarColumn(bar_width=12), loss, speed, left, remaining),
        (counts, loss, speed, left, remaining),
        (counts, loss, short_speed, remaining),
        (counts, short_loss, short_speed, remaining),
    )


def _counting_layouts(noun: str) -> Sequence[Sequence[Any]]:
    what, counts, left = TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("left")
    units, elapsed, remaining = TextColumn(f"{noun}s"), TimeElapsedColumn(), TimeRemainingColumn()
    return (
        (what, counts, BarColumn(bar_width=24), units, elapsed, left, remaining),
        (what, counts, BarColumn(bar_width=12), units, left, remaining),
        (what, counts, left, remaining),
        (what, counts, remaining),
    )


class TrainingBar:
    """TrainingDisplay with updates done, loss, images per second, time left and, if there is room, learning rate."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total, self._last_line = 0, 0.0
        self._first: Optional[Tuple[int, float]] = None
        self._bar = _FittingProgress(_training_layouts(), console, disable=not console.is_terminal)
        self._task: Any = None

    def start(self, total_updates: int, *, done: int) -> None:
        self._total = total_updates
        fields = {"loss": float("nan"), "learning_rate": 0.0, "speed": "0"}
        self._task = self._bar.add_task("train", total=total_updates, completed=done, **fields)  # type: ignore[arg-type]
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        speed = f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f}"
        fields = {"loss": loss, "learning_rate": learning_rate, "speed": speed}
        self._bar.update(self._task, completed=update, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or update == self._total
        if due and not self._console.is_terminal:
            self._last_line = now
            self.notify(
                f"update {update} of {self._total}: loss {loss:.4f}, learning rate {learning_rate:.2e}, "
                f"{speed} images/s{self._time_left(update, now)}"
            )
        self._first = self._first or (update, now)

    def _time_left(self, update: int, now: float) -> str:
        """Returns the time that the rest takes at the pace since the first step, which compiles on some devices."""
        if self._first is None or update in (self._first[0], self._total):
            return ""
        first, then = self._first
        return f", {lasting((now - then) / (update - first) * (self._total - update))} left"

    def notify(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class CountBar:
    """Progress bar with the number of items of each kind that are done, and the time left."""

    def __init__(self, console: Console, noun: str, *, quiet: bool = False) -> None:
        self._console, self._noun, self._quiet = console, noun, quiet
        self._last_line = time.monotonic()
        self._bar = _FittingProgress(_counting_layouts(noun), console, disable=quiet or not console.is_terminal)
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
            text = f"{what}: {done:,} of {counted(total, self._noun)}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

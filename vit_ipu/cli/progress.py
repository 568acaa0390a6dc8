"""What a run shows on the terminal, a progress bar or plain lines, and what it makes of Ctrl-C."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class TrainingDisplay:
    """Updates done, loss, learning rate, images a second and time left."""

    def __init__(self, console: Console, total_updates: int, *, done: int, quiet: bool = False) -> None:
        self._console, self._total, self._quiet = console, total_updates, quiet
        self._last_line = 0.0
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
            disable=quiet or not console.is_terminal,
        )
        fields = {"loss": float("nan"), "learning_rate": 0.0, "images_per_second": 0.0}
        self._task = self._bar.add_task("train", total=total_updates, completed=done, **fields)  # type: ignore[arg-type]

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        """A host step has ended."""
        fields = {"loss": loss, "learning_rate": learning_rate, "images_per_second": images_per_second}
        self._bar.update(self._task, completed=update, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or update == self._total
        if due and not self._console.is_terminal:
            self._last_line = now
            self.say(
                f"update {update} of {self._total}: loss {loss:.4f}, learning rate {learning_rate:.2e}, "
                f"{images_per_second:,.0f} images/s"
            )

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if not self._quiet:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class CountDisplay:
    """How many things of each kind are done, and how long it will take."""

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

    def __enter__(self) -> CountDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` are done of `what`."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and not (self._quiet or self._console.is_terminal):
            self._last_line = now
            text = f"{what}: {done:,} of {total:,} {self._unit}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


Item = TypeVar("Item")


class Interrupted(Exception):
    """Somebody has asked to stop, and what was going on is of no use half done."""


class StopSignal:
    """Ctrl-C or SIGTERM asks the run to stop after the current host step; a second one stops at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: whoever owns it stops us
                break
        return self

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def until_asked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as far as nobody has asked to stop."""
        for item in items:
            if self.asked:
                return
            yield item

    def unless_asked(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items. Raises Interrupted once somebody has asked to stop."""
        for item in items:
            if self.asked:
                raise Interrupted
            yield item

    def _ask(self, number: int, frame: Optional[FrameType]) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this host step; again to stop at once")

"""What a run shows while it trains: a protocol, and the display of a program that shows nothing."""

from __future__ import annotations

from typing_extensions import Protocol


class TrainingDisplay(Protocol):
    """Shows how far a training is: the command line's bar, a notebook's, or nothing."""

    def start(self, total_updates: int, *, done: int) -> None:
        """Training begins, after `done` of the updates."""

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        """A host step has ended; `update` counts the updates that are done."""

    def notify(self, text: str) -> None:
        """Shows a line of its own."""

    def stop(self) -> None:
        """Training has ended."""


class NoDisplay:
    """A TrainingDisplay that shows nothing."""

    def start(self, total_updates: int, *, done: int) -> None:
        pass

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        pass

    def notify(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


NO_DISPLAY = NoDisplay()

"""Display of a run while it trains: the protocol, and a display that shows nothing."""

from __future__ import annotations

from typing_extensions import Protocol


class TrainingDisplay(Protocol):
    """Display of the progress of training, such as the command line's bar or a notebook's."""

    def start(self, total_updates: int, *, done: int) -> None:
        """Starts the display; `done` of the updates were done before."""

    def step(self, update: int, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        """Shows that a host step has ended; `update` counts the updates that are done."""

    def notify(self, text: str) -> None:
        """Shows a line of text."""

    def stop(self) -> None:
        """Ends the display when training has ended."""


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

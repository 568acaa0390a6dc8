"""Text by strangers, such as file, tensor and class names, made fit for one line on a terminal."""

from __future__ import annotations

from typing import Callable

Notify = Callable[[str], None]
"""Shows the user a line."""


def single_line(text: str) -> str:
    """Replaces line breaks and runs of spaces by one space each."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """Replaces by "?" each character that a terminal cannot print or would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def escaped(text: str) -> str:
    """Replaces by its escape each character that a terminal cannot print or would obey, so that names stay distinct."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def shortened(text: str, longest: int) -> str:
    """Cuts the text after `longest` characters, and says so by "..."."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def reason_of(error: BaseException) -> str:
    """Gives what an exception of somebody else's code says, as one line; its kind if it says nothing."""
    return single_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__

"""Text of messages: text from outside, such as file, tensor and class names, made safe for one line on a terminal."""

from __future__ import annotations

import json
from typing import Callable, Sequence

LONGEST_MESSAGE = 2000
"""Characters of the longest message."""
Notify = Callable[[str], None]
"""Function that shows the user a line."""


def single_line(text: str) -> str:
    """Replaces line breaks and runs of spaces by one space each."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """Replaces each character that a terminal cannot print or would execute as a command by its escape sequence."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def python_string(text: str) -> str:
    """Returns Python code for the text, in double quotes, with the letters of all languages as they are."""
    return escaped(json.dumps(text, ensure_ascii=False))  # else an emoji becomes two halves, for Python too


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns the count and its noun, such as "1 sample" or "2,000 samples"; `plural` is for nouns that add no s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def lasting(seconds: float) -> str:
    """Returns a span of time in the unit that suits it, such as `12.3 minutes`."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def plain_numbers(values: Sequence[float]) -> str:
    """Returns numbers, separated by spaces, with at most six digits and no trailing zeros."""
    return " ".join(f"{value:g}" for value in values)


def and_more(count: int) -> str:
    """Returns what follows an example in a message: " (and 2 more)", or nothing if there are 0 more."""
    return f" (and {count:,} more)" if count else ""


def listed(names: Sequence[str], most: int = 4) -> str:
    """Returns the first names, and how many more there are, such as "cat, dog (and 2 more)"."""
    return ", ".join(map(escaped, names[:most])) + and_more(max(0, len(names) - most))


def all_mistakes(texts: Sequence[str], most: int = 3) -> str:
    """Returns one or more mistakes as one line: the first `most`, joined by "; also ", and how many more there are."""
    return "; also ".join(texts[:most]) + and_more(max(0, len(texts) - most))


def message(text: str) -> str:
    """Returns a message as one line that a terminal prints and does not execute; the middle of a long one is left out,
    because the end says what to do."""
    line = escaped(text)
    if len(line) <= LONGEST_MESSAGE:
        return line
    kept = LONGEST_MESSAGE // 2
    return f"{line[:kept]} ... {line[-kept:]}"


def shortened(text: str, longest: int) -> str:
    """Cuts the text after `longest` characters and appends "..." if it was cut."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def reason_of(error: BaseException) -> str:
    """Returns the message of another library's exception as one line; without a message, the name of its class."""
    return single_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__

"""Colours by name or by red, green and blue."""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, Optional, Tuple, Union

from pydantic import BeforeValidator, Field
from typing_extensions import Annotated, Literal

from vit_ipu.text import shortened

Rgb = Tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""
ColorName = Literal[
    "black", "gray", "silver", "white", "red", "lime", "blue", "yellow", "aqua", "fuchsia", "maroon", "green", "navy",
    "olive", "teal", "purple",
]  # fmt: skip
COLORS: Dict[str, Rgb] = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "silver": (192, 192, 192),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "lime": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "aqua": (0, 255, 255),
    "fuchsia": (255, 0, 255),
    "maroon": (128, 0, 0),
    "green": (0, 128, 0),
    "navy": (0, 0, 128),
    "olive": (128, 128, 0),
    "teal": (0, 128, 128),
    "purple": (128, 0, 128),
}
"""The sixteen names of HTML 4 (section 6.5)."""
_LONGEST = 80


def rgb_of(color: Any) -> Rgb:
    """Returns the colour of a name, or of three whole numbers from 0 to 255. Raises ValueError for another value."""
    if isinstance(color, str) and color in COLORS:
        return COLORS[color]
    is_three = isinstance(color, (list, tuple)) and len(color) == 3
    if is_three and all(type(part) is int and 0 <= part <= 255 for part in color):
        return color[0], color[1], color[2]
    shown, close = shortened(str(color), _LONGEST), difflib.get_close_matches(str(color), COLORS, n=1)
    if close:
        raise ValueError(f"{shown} is not a colour; did you mean {close[0]!r}?")
    raise ValueError(
        f"{shown} is not a colour: give one of {', '.join(COLORS)}, or red, green and blue from 0 to 255, such as "
        "[255, 255, 255]"
    )


def parse_color(text: str) -> Rgb:
    """Returns the colour of an option: a name, or numbers such as 255,255,255. Raises ValueError for another text."""
    parts = text.strip("[]").split(",")
    numbers = [int(part) for part in parts if part.strip().isascii() and part.strip().isdigit()]
    return rgb_of(numbers if len(numbers) == len(parts) == 3 else text)


def color_text(color: Optional[Rgb]) -> str:
    """Returns a colour as a config writes it: its name, its numbers, or null."""
    value = color_value(color)
    return "null" if value is None else str(value)


def color_value(color: Optional[Rgb]) -> Union[str, List[int], None]:
    """Returns a colour as a value of a config: its name, or else its numbers."""
    names = [name for name, rgb in COLORS.items() if rgb == color]
    return names[0] if names else None if color is None else list(color)


def _checked(value: Any) -> Any:
    """Returns the value of a config, with numbers as a tuple. Raises ValueError if it is not a colour."""
    if value is None:
        return None
    color = rgb_of(value)
    return value if isinstance(value, str) else color


_Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[Union[ColorName, Tuple[_Byte, _Byte, _Byte]], BeforeValidator(_checked)]

"""Colours of the report, as CSS variables that are other ones on a dark screen."""

from __future__ import annotations

FIRST, SECOND, INK = "var(--first, #2f6bb0)", "var(--second, #b85c00)", "var(--ink, #222222)"
GRID, ON_BAR = "var(--grid, #dddddd)", "var(--on-bar, #ffffff)"
"""Each with the colour of a picture that stands alone."""
STYLE_LIGHT = (
    "--paper: #ffffff; --ink: #222222; --block: #f3f4f6; --notice: #fff4dc; --grid: #dddddd; --first: #2f6bb0; "
    "--second: #b85c00; --heat: 47, 107, 176; --on-bar: #ffffff;"
)
STYLE_DARK = (
    "--paper: #16181c; --ink: #e4e6ea; --block: #23262c; --notice: #3a2f17; --grid: #3c4048; --first: #7fb0ea; "
    "--second: #f0a04b; --heat: 127, 176, 234; --on-bar: #16181c;"
)

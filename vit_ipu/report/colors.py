"""Colours of the report: those of a light screen, and the CSS variables that replace them on a dark one."""

from __future__ import annotations

FIRST, SECOND, INK, GRID, ON_BAR = "#2f6bb0", "#b85c00", "#222222", "#dddddd", "#ffffff"
"""Colours that pictures are drawn with."""
COMPARED = (
    "#2f7fd0",
    "#cc6a10",
    "#2f9a4a",
    "#d6453d",
    "#9467d8",
    "#15918c",
    "#cf4fa0",
    "#a0703c",
    "#7d828a",
    "#8a8a10",
)
"""Colours of the runs of a comparison; each has a contrast of at least 3 to a light and to a dark screen."""
VARIABLES = {
    FIRST: f"var(--first, {FIRST})",
    SECOND: f"var(--second, {SECOND})",
    INK: f"var(--ink, {INK})",
    GRID: f"var(--grid, {GRID})",
    ON_BAR: f"var(--on-bar, {ON_BAR})",
}
"""What the page has in the place of each colour."""
STYLE_LIGHT = (
    f"--paper: #ffffff; --ink: {INK}; --block: #f3f4f6; --notice: #fff4dc; --grid: {GRID}; --first: {FIRST}; "
    f"--second: {SECOND}; --heat: 47, 107, 176; --on-bar: {ON_BAR};"
)
STYLE_DARK = (
    "--paper: #16181c; --ink: #e4e6ea; --block: #23262c; --notice: #3a2f17; --grid: #3c4048; --first: #7fb0ea; "
    "--second: #f0a04b; --heat: 127, 176, 234; --on-bar: #16181c;"
)

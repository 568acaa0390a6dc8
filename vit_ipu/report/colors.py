"""Colours of the report's pictures."""

from __future__ import annotations

FIRST, SECOND, INK, GRID = "#3b73b9", "#d9822b", "#222222", "#dddddd"

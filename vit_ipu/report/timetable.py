"""Picture of the pipeline's timetable of one weight update."""

from __future__ import annotations

from typing import List

from vit_ipu.pipeline import Slot, num_cycles, num_stages, timetable
from vit_ipu.report.colors import FIRST, INK, ON_BAR, SECOND

_CELL, _ROW, _LEFT, _TOP = 26, 34, 64, 22
"""Pixels: width of a cycle, height of an IPU's row, left margin and top margin."""


def timetable_svg(num_ipus: int, gradient_accumulation: int) -> str:
    """Returns the timetable of one weight update as SVG: rows are IPUs, columns are cycles, numbers are micro-batches.

    A long update is drawn with fewer micro-batches; the cycles that are left out repeat those in the middle.
    """
    drawn = min(gradient_accumulation, 2 * num_stages(num_ipus) + 4)
    slots, cycles = timetable(num_ipus, drawn), num_cycles(num_ipus, drawn)
    width, height = _LEFT + max(cycles * _CELL, 520) + 8, _TOP + num_ipus * _ROW + 44
    parts = [
        '<svg role="img" aria-label="timetable of the pipeline" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    ]
    parts += [_label(6, _TOP + ipu * _ROW + 20, f"IPU {ipu}", anchor="start") for ipu in range(num_ipus)]
    both = {(slot.cycle, slot.ipu) for slot in slots if slot.backward} & {
        (slot.cycle, slot.ipu) for slot in slots if not slot.backward
    }
    parts += [_slot(slot, half=(slot.cycle, slot.ipu) in both) for slot in slots]
    parts += _legend(_TOP + num_ipus * _ROW + 28, drawn, gradient_accumulation)
    return "\n".join(parts + ["</svg>"])


def _slot(slot: Slot, *, half: bool) -> str:
    x, y = _LEFT + slot.cycle * _CELL, _TOP + slot.ipu * _ROW
    height = (_ROW - 6) // 2 if half else _ROW - 6
    if half and slot.backward:
        y += height
    color = SECOND if slot.backward else FIRST
    box = f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{height}" fill="{color}" rx="2"/>'
    return box + _label(x + _CELL // 2 - 1, y + height // 2 + 4, str(slot.micro_batch), color=ON_BAR)


def _legend(y: int, drawn: int, gradient_accumulation: int) -> List[str]:
    parts = []
    for x, color, text in ((_LEFT, FIRST, "forward"), (_LEFT + 84, SECOND, "backward")):
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}" rx="2"/>')
        parts.append(_label(x + 17, y, text, anchor="start"))
    note = "numbers: micro-batches of one weight update"
    if drawn < gradient_accumulation:
        note += f", drawn for {drawn} of {gradient_accumulation}"
    return parts + [_label(_LEFT + 180, y, note, anchor="start")]


def _label(x: int, y: int, text: str, *, anchor: str = "middle", color: str = INK) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{text}</text>'

"""Picture of the pipeline's timetable of one weight update."""

from __future__ import annotations

import io
from typing import List, NamedTuple, Tuple, Union

from PIL import Image, ImageDraw, ImageFont

from vit_ipu.pipeline import Slot, num_cycles, num_stages, timetable
from vit_ipu.report.colors import FIRST, INK, ON_BAR, SECOND, VARIABLES
from vit_ipu.report.drawing import PAPER, Picture, path_of_font

_CELL, _ROW, _LEFT, _TOP = 26, 34, 64, 22
"""Pixels: width of a cycle, height of an IPU's row, left margin and top margin."""
_FONT_SIZE, _RADIUS = 11, 2
_WIDEST = 4000
"""Pixels of an SVG's width up to which the PNG has twice as many."""
_PILLOW_ANCHORS = {"start": "ls", "middle": "ms"}


class _Box(NamedTuple):
    x: int
    y: int
    width: int
    height: int
    color: str


class _Label(NamedTuple):
    x: int
    y: int
    text: str
    anchor: str = "middle"
    color: str = INK


_Shape = Union[_Box, _Label]


class _Drawing(NamedTuple):
    width: int
    height: int
    shapes: List[_Shape]


def timetable_svg(num_ipus: int, gradient_accumulation: int) -> str:
    """Returns the timetable of one weight update as SVG: rows are IPUs, columns are cycles, numbers are micro-batches.

    A long update is drawn with fewer micro-batches; the cycles that are left out repeat those in the middle.
    """
    text = _as_svg(_drawn(num_ipus, gradient_accumulation))
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return text


def timetable_picture(num_ipus: int, gradient_accumulation: int) -> Picture:
    """Returns the timetable as files."""
    drawing = _drawn(num_ipus, gradient_accumulation)
    svg = _as_svg(drawing).replace("<svg ", f'<svg style="background:{PAPER}" ', 1)
    return Picture("timetable", f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n', _as_png(drawing))


def _drawn(num_ipus: int, gradient_accumulation: int) -> _Drawing:
    drawn = min(gradient_accumulation, 2 * num_stages(num_ipus) + 4)
    slots, cycles = timetable(num_ipus, drawn), num_cycles(num_ipus, drawn)
    shapes: List[_Shape] = [_Label(6, _TOP + ipu * _ROW + 20, f"IPU {ipu}", "start") for ipu in range(num_ipus)]
    both = {(slot.cycle, slot.ipu) for slot in slots if slot.backward} & {
        (slot.cycle, slot.ipu) for slot in slots if not slot.backward
    }
    for slot in slots:
        shapes += _slot(slot, half=(slot.cycle, slot.ipu) in both)
    shapes += _legend(_TOP + num_ipus * _ROW + 28, drawn, gradient_accumulation)
    return _Drawing(_LEFT + max(cycles * _CELL, 520) + 8, _TOP + num_ipus * _ROW + 44, shapes)


def _slot(slot: Slot, *, half: bool) -> Tuple[_Box, _Label]:
    x, y = _LEFT + slot.cycle * _CELL, _TOP + slot.ipu * _ROW
    height = (_ROW - 6) // 2 if half else _ROW - 6
    if half and slot.backward:
        y += height
    box = _Box(x, y, _CELL - 2, height, SECOND if slot.backward else FIRST)
    return box, _Label(x + _CELL // 2 - 1, y + height // 2 + 4, str(slot.micro_batch), color=ON_BAR)


def _legend(y: int, drawn: int, gradient_accumulation: int) -> List[_Shape]:
    shapes: List[_Shape] = []
    for x, color, text in ((_LEFT, FIRST, "forward"), (_LEFT + 84, SECOND, "backward")):
        shapes += [_Box(x, y - 10, 12, 12, color), _Label(x + 17, y, text, "start")]
    note = "numbers: micro-batches of one weight update"
    if drawn < gradient_accumulation:
        note += f", drawn for {drawn} of {gradient_accumulation}"
    return [*shapes, _Label(_LEFT + 180, y, note, "start")]


def _as_svg(drawing: _Drawing) -> str:
    width, height = drawing.width, drawing.height
    head = (
        '<svg role="img" aria-label="timetable of the pipeline" xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT_SIZE}">'
    )
    return "\n".join([head, *map(_svg_of, drawing.shapes), "</svg>"])


def _svg_of(shape: _Shape) -> str:
    if isinstance(shape, _Label):
        x, y, text, anchor, color = shape
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{text}</text>'
    x, y, width, height, color = shape
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{color}" rx="{_RADIUS}"/>'


def _as_png(drawing: _Drawing) -> bytes:
    scale = 2 if drawing.width <= _WIDEST else 1
    image = Image.new("RGB", (scale * drawing.width, scale * drawing.height), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(path_of_font(), scale * (_FONT_SIZE - 1))
    for shape in drawing.shapes:
        left, top = scale * shape.x, scale * shape.y
        if isinstance(shape, _Label):
            draw.text((left, top), shape.text, shape.color, font=font, anchor=_PILLOW_ANCHORS[shape.anchor])
        else:
            corners = (left, top, left + scale * shape.width - 1, top + scale * shape.height - 1)
            draw.rounded_rectangle(corners, scale * _RADIUS, shape.color)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

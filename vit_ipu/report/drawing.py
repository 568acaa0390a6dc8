"""Figures of matplotlib as parts of a page, or as files that stand alone."""

from __future__ import annotations

import html
import io
import os
import sys
import warnings
from contextlib import suppress
from typing import Any, NamedTuple, Tuple

from vit_ipu.report.colors import GRID, INK, VARIABLES
from vit_ipu.text import escaped

_DOTS_PER_INCH = 150
PAPER = "#ffffff"
"""Background of pictures that stand alone."""
_FILE_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "vit_ipu"}
"""Letters of an SVG file are text, which can be searched and edited; in the page they are outlines. The same picture is
the same file, because its ids are not random."""


class Picture(NamedTuple):
    """A picture that stands alone: the contents of an SVG file and of a PNG file, and the files' name."""

    name: str
    svg: str
    png: bytes


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of matplotlib; sizes are in inches."""
    _import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def path_of_font() -> str:
    """Returns the path of the font that comes with matplotlib."""
    _import_matplotlib()
    from matplotlib import font_manager

    return str(font_manager.findfont("DejaVu Sans"))


def plain_text(text: str) -> str:
    """Returns a text that matplotlib shows as it is: neither as a formula, nor hidden because of a leading _."""
    return "\u200b" + escaped(text).replace("$", r"\$")


def finish_axes(axes: Any, title: str, *, handlelength: float = 2.0) -> None:
    """Gives axes the title, and the colours and lines of the report; `handlelength` is that of the legend's lines."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, handlelength=handlelength)


def draw_grid(axes: Any, axis: str = "both") -> None:
    """Draws the lines of a grid behind everything else."""
    axes.set_axisbelow(True)
    axes.grid(axis=axis, color=GRID, linewidth=0.6)


def for_page(figure: Any, label: str) -> str:
    """Returns the figure as SVG with the colours of the page; `label` says what it shows."""
    figure.patch.set_alpha(0)
    text = _svg(figure)
    text = text[text.index("<svg") :]
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def for_file(figure: Any, name: str, title: str) -> Picture:
    """Returns the figure as files of this name, with the title above it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.suptitle(plain_text(title), fontsize=9, color=INK, x=0.01, ha="left")
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(_FILE_SETTINGS):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # an SVG gets it from the viewer's fonts
        svg = _svg(figure)
        figure.set_dpi(_DOTS_PER_INCH)  # an SVG has 72
        FigureCanvasAgg(figure).print_png(file, metadata={"Title": escaped(title)})  # type: ignore[no-untyped-call]
    return Picture(name, svg, file.getvalue())


def _svg(figure: Any) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return file.getvalue()


def _import_matplotlib() -> None:
    """Imports matplotlib, also if MPLBACKEND names no backend, for which its import would fail: a report needs none."""
    if "matplotlib" in sys.modules:
        return
    chosen = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if chosen is not None:
        os.environ["MPLBACKEND"] = chosen
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = chosen


def size_for(rows: int, *, around: float = 1.4) -> Tuple[float, float]:
    """Returns the width and the height, in inches, of a figure with rows and a height of `around` beside them."""
    return 8.0, around + 0.3 * rows

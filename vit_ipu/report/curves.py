"""Curves of loss, accuracy, learning rate and speed of a run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, Dict, Optional, Sequence, Tuple

from vit_ipu.report.colors import FIRST, GRID, INK, SECOND

Metrics = Sequence[Dict[str, Any]]
_STAND_INS = {FIRST: "#010203", SECOND: "#010204", INK: "#010205", GRID: "#010206"}
"""Colours that matplotlib draws with, in whose place the page's own are then written: they differ on a dark screen."""
_KEYS = {"loss": "Loss (nats)", "top1": "Top-1 (%)", "learning_rate": "Learning rate", "images_per_second": "Images/s"}
"""What runs are compared by."""
_LINES = ("-", "--", ":", "-.")
"""Styles of lines, for every ten runs another one."""


def curves_svg(metrics: Metrics, *, best: Optional[int] = None) -> str:
    """Returns curves of loss, accuracy, learning rate and speed over updates, as SVG; marks the update `best`."""
    figure = _figure((10, 6))
    loss, accuracy, rate, speed = figure.subplots(2, 2).flat
    _curve(loss, metrics, "loss", "training", FIRST)
    _curve(loss, metrics, "evaluation_loss", "held out", SECOND, marker="o")
    _curve(accuracy, metrics, "top1", "top-1", FIRST, marker="o")
    _curve(accuracy, metrics, "top5", "top-5", SECOND, marker="o")
    _curve(rate, metrics, "learning_rate", None, FIRST)
    _curve(speed, metrics, "images_per_second", None, FIRST)
    if best is not None:
        accuracy.axvline(best, color=_STAND_INS[INK], linewidth=0.8, linestyle=":", label=f"best, update {best:,}")
    for axes, title in (
        (loss, "Loss (nats)"),
        (accuracy, "Accuracy (%)"),
        (rate, "Learning rate"),
        (speed, "Images/s"),
    ):
        _finish(axes, title)
    return _svg(figure, "curves of loss, accuracy, learning rate and speed")


def comparison_svg(runs: Sequence[Tuple[str, Metrics]]) -> str:
    """Returns the curves of several named runs over updates, as SVG, in a colour for each."""
    figure = _figure((10, 6))
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, _KEYS.items()):
        for number, (name, metrics) in enumerate(runs):
            style = {"marker": "o" if key == "top1" else "", "linestyle": _LINES[number // 10 % len(_LINES)]}
            _curve(axes, metrics, key, _legend_text(name), f"C{number % 10}", **style)
        _finish(axes, title)
    return _svg(figure, "curves of the runs")


def _legend_text(name: str) -> str:
    """Returns a name that matplotlib shows as it is: neither as a formula, nor hidden because of a leading _."""
    return "\u200b" + name.replace("$", r"\$")


def _figure(size: Tuple[float, float]) -> Any:
    _import_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _finish(axes: Any, title: str) -> None:
    ink = _STAND_INS[INK]
    axes.set_title(title, loc="left", fontsize=11, color=ink)
    axes.set_xlabel("update", color=ink)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=ink)
    axes.grid(color=_STAND_INS[GRID], linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=ink)


def _svg(figure: Any, label: str) -> str:
    """Returns the figure as SVG with the colours of the page; `label` says what it shows."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    text = file.getvalue()[file.getvalue().index("<svg") :]
    for color, stand_in in _STAND_INS.items():
        text = text.replace(stand_in, color)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


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


def _curve(axes: Any, metrics: Metrics, key: str, label: Any, color: str, **style: str) -> None:
    points = [(line["update"], line[key]) for line in metrics if key in line]
    if points:
        color = _STAND_INS.get(color, color)
        axes.plot(*zip(*points), color=color, label=label, markersize=4, linewidth=1.4, **style)

"""Curves of loss, accuracy, learning rate and speed of a run."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, Dict, List

from vit_ipu.report.colors import FIRST, GRID, SECOND


def curves_svg(metrics: List[Dict[str, Any]]) -> str:
    """Returns curves of loss, accuracy, learning rate and speed over updates, as SVG."""
    _import_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    loss, accuracy, rate, speed = figure.subplots(2, 2).flat
    _curve(loss, metrics, "loss", "training", FIRST)
    _curve(loss, metrics, "evaluation_loss", "held out", SECOND, marker="o")
    _curve(accuracy, metrics, "top1", "top-1", FIRST, marker="o")
    _curve(accuracy, metrics, "top5", "top-5", SECOND, marker="o")
    _curve(rate, metrics, "learning_rate", None, FIRST)
    _curve(speed, metrics, "images_per_second", None, FIRST)
    for axes, title in (
        (loss, "Loss (nats)"),
        (accuracy, "Accuracy (%)"),
        (rate, "Learning rate"),
        (speed, "Images/s"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("update")
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return text.getvalue()[text.getvalue().index("<svg") :]


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


def _curve(axes: Any, metrics: List[Dict[str, Any]], key: str, label: Any, color: str, marker: str = "") -> None:
    points = [(line["update"], line[key]) for line in metrics if key in line]
    if points:
        axes.plot(*zip(*points), color=color, label=label, marker=marker, markersize=4, linewidth=1.4)

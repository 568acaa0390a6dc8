"""Curves of loss, accuracy, learning rate and speed of a run."""

from __future__ import annotations

from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

from vit_ipu.report.colors import COMPARED, FIRST, INK, SECOND
from vit_ipu.report.drawing import Picture, draw_grid, finish_axes, for_file, for_page, new_figure, plain_text

Metrics = Sequence[Dict[str, Any]]
_KEYS = {"loss": "Loss (nats)", "top1": "Top-1 (%)", "learning_rate": "Learning rate", "images_per_second": "Images/s"}
"""What runs are compared by."""
_DASHES: Tuple[Tuple[float, ...], ...] = (
    (),
    (5, 2),
    (1.2, 1.8),
    (7, 2, 1.2, 2),
    (11, 3),
    (7, 2, 1.2, 2, 1.2, 2),
    (3, 4),
)
"""Dashes and gaps of the lines of compared runs, in widths of the line: runs are told apart without their colours."""
_MARKERS = "os^DvPX"
"""Markers of the points of compared runs, where there are few: one for each of _DASHES."""

_LARGEST = 1e300
"""Size of a value up to which matplotlib can draw an axis that has the value."""


class _Curve(NamedTuple):
    key: str
    label: Optional[str]
    color: str
    marker: str = ""


_CURVES: Dict[str, Tuple[str, Tuple[_Curve, ...]]] = {
    "loss": ("Loss (nats)", (_Curve("loss", "training", FIRST), _Curve("evaluation_loss", "held out", SECOND, "o"))),
    "accuracy": ("Accuracy (%)", (_Curve("top1", "top-1", FIRST, "o"), _Curve("top5", "top-5", SECOND, "o"))),
    "learning_rate": (_KEYS["learning_rate"], (_Curve("learning_rate", None, FIRST),)),
    "images_per_second": (_KEYS["images_per_second"], (_Curve("images_per_second", None, FIRST),)),
}
"""The title and the curves of each of the axes of one run."""


def curves_svg(metrics: Metrics, *, best: Optional[int] = None) -> str:
    """Returns curves of loss, accuracy, learning rate and speed over updates, as SVG; marks the update `best`."""
    figure = new_figure(10, 6)
    for axes, name in zip(figure.subplots(2, 2).flat, _CURVES):
        _draw(axes, name, metrics, best)
    return for_page(figure, "curves of loss, accuracy, learning rate and speed")


def curve_pictures(metrics: Metrics, title: str, *, best: Optional[int], simulated: bool) -> Iterator[Picture]:
    """Yields a picture of each kind of curve that the run has, under the title."""
    for name, (_, curves) in _CURVES.items():
        if any(curve.key in line for line in metrics for curve in curves):
            figure = new_figure(6.4, 4)
            axes = figure.subplots()
            _draw(axes, name, metrics, best)
            if simulated and name == "images_per_second":
                axes.set_title("Images/s of the simulation, not of an IPU", loc="left", fontsize=11, color=INK)
            yield for_file(figure, name, title)


def comparison_svg(runs: Sequence[Tuple[str, Metrics]]) -> str:
    """Returns the curves of several named runs over updates, as SVG: each run has a colour and a pattern of dashes."""
    figure = new_figure(10, 6)
    for axes, key in zip(figure.subplots(2, 2).flat, _KEYS):
        _compare(axes, key, runs)
    return for_page(figure, "curves of the runs")


def comparison_pictures(runs: Sequence[Tuple[str, Metrics]], title: str) -> Iterator[Picture]:
    """Yields a picture of each kind of curve that a run has, with those of all named runs."""
    for key in _KEYS:
        if any(key in line for _, metrics in runs for line in metrics):
            figure = new_figure(6.4, 4)
            _compare(figure.subplots(), key, runs)
            yield for_file(figure, key, title)


def _draw(axes: Any, name: str, metrics: Metrics, best: Optional[int]) -> None:
    title, curves = _CURVES[name]
    for curve in curves:
        _plot(axes, metrics, curve.key, curve.label, curve.color, marker=curve.marker)
    if best is not None and name == "accuracy":
        axes.axvline(best, color=INK, linewidth=0.8, linestyle=":", label=f"best, update {best:,}")
    _finish(axes, title)


def _compare(axes: Any, key: str, runs: Sequence[Tuple[str, Metrics]]) -> None:
    for number, (name, metrics) in enumerate(runs):
        kind = number % len(_DASHES)
        has_few = key == "top1" or sum(key in line for line in metrics) == 1
        style = {"marker": _MARKERS[kind] if has_few else "", "dashes": _DASHES[kind]}
        _plot(axes, metrics, key, plain_text(name), COMPARED[number % len(COMPARED)], **style)
    _finish(axes, _KEYS[key], handlelength=4.5)  # long enough for a pattern of dashes


def _finish(axes: Any, title: str, *, handlelength: float = 2.0) -> None:
    axes.set_xlabel("update", color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    draw_grid(axes)
    finish_axes(axes, title, handlelength=handlelength)


def _plot(axes: Any, metrics: Metrics, key: str, label: Optional[str], color: str, **style: Any) -> None:
    points = [(line["update"], _drawable(line[key])) for line in metrics if key in line]
    if points:
        axes.plot(*zip(*points), color=color, label=label, markersize=4, linewidth=1.4, **style)


def _drawable(value: float) -> float:
    """Returns the value; NaN, which leaves a gap, for one that is too large to draw."""
    return value if abs(value) <= _LARGEST else float("nan")

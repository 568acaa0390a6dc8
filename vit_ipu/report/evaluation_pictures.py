"""Pictures of what a model confuses, as files that stand alone."""

from __future__ import annotations

from typing import Any, Iterator, List, Sequence

from vit_ipu.report.colors import FIRST, INK, ON_BAR
from vit_ipu.report.drawing import (
    PAPER,
    Picture,
    draw_grid,
    finish_axes,
    for_file,
    new_figure,
    plain_text,
    size_for,
)
from vit_ipu.report.mistakes import LARGEST_MATRIX, MOST_CLASSES, MOST_PAIRS, accuracies, without_images
from vit_ipu.runs.last_evaluation import LastEvaluation
from vit_ipu.scores import most_confused
from vit_ipu.text import counted, shortened

_COLUMNS = 6
"""Mistakes beside each other."""
_LONGEST_NAME = 24
"""Characters of a class's name."""
_DARK = 0.6
"""Share of a class's images from which on a cell of the matrix has light numbers."""


def evaluation_pictures(evaluation: LastEvaluation, title: str) -> Iterator[Picture]:
    """Yields pictures of the mistakes, the confusions and the accuracy of each class, as far as there are any."""
    title = f"{title}, evaluation at update {evaluation.update:,}"
    if evaluation.mistakes:
        yield _mistakes(evaluation, title)
    if evaluation.confusion and len(evaluation.classes) <= LARGEST_MATRIX:
        yield _matrix(evaluation, title)
    elif most_confused(evaluation.matrix, 1):
        yield _pairs(evaluation, title)
    if accuracies(evaluation):
        yield _classes(evaluation, title)


def _mistakes(evaluation: LastEvaluation, title: str) -> Picture:
    rows = -(-len(evaluation.mistakes) // _COLUMNS)
    figure = new_figure(1.6 * _COLUMNS, 0.6 + 2.1 * rows)
    if evaluation.is_searched_in_part:
        title += f", among {evaluation.num_searched:,} of {evaluation.num_images:,} images"
    cells = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    names = _names(evaluation.classes)
    for axes in cells:
        axes.axis("off")
    for axes, mistake in zip(cells, evaluation.mistakes):
        image = mistake.image
        if image is None:
            axes.text(0.5, 0.5, "damaged picture", ha="center", color=INK, transform=axes.transAxes)
        else:
            axes.imshow(image)
        text = f"{names[mistake.label]}, taken for\n{names[mistake.predicted]} ({mistake.probability:.0%})"
        axes.set_title(text, fontsize=8, color=INK)
    return for_file(figure, "mistakes", title)


def _matrix(evaluation: LastEvaluation, title: str) -> Picture:
    from matplotlib.colors import LinearSegmentedColormap

    names, counts = _names(evaluation.classes), evaluation.matrix.tolist()
    side = 2.5 + 0.42 * len(names)
    figure = new_figure(side, side)
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    axes.imshow(shares, vmin=0, vmax=1, cmap=LinearSegmentedColormap.from_list("shares", [PAPER, FIRST]))
    for label, row in enumerate(counts):
        for predicted, count in enumerate(row):
            color = ON_BAR if shares[label][predicted] > _DARK else INK
            axes.text(predicted, label, f"{count:,}", ha="center", va="center", fontsize=7, color=color)
    places = range(len(names))
    axes.set_xticks(places, labels=names, rotation=90)
    axes.set_yticks(places, labels=names)
    axes.set_xlabel("taken for", color=INK)
    axes.set_ylabel("class of the images", color=INK)
    finish_axes(axes, "Confusions (images)")
    return for_file(figure, "confusions", title)


def _pairs(evaluation: LastEvaluation, title: str) -> Picture:
    names = _names(evaluation.classes)
    pairs = most_confused(evaluation.matrix, MOST_PAIRS)
    labels = [f"{names[label]}, taken for {names[predicted]}" for label, predicted, _ in pairs]
    counts = [count for _, _, count in pairs]
    figure = _bars(labels, counts, [f"{count:,}" for count in counts], "The most frequent confusions (images)")
    return for_file(figure, "confusions", title)


def _classes(evaluation: LastEvaluation, title: str) -> Picture:
    found = accuracies(evaluation)
    shown = found[:MOST_CLASSES]
    heading = f"Top-1 (%) of the {MOST_CLASSES} worst of {len(found):,} classes" if found[len(shown) :] else "Top-1 (%)"
    missing = len(without_images(evaluation))
    heading += f"; {counted(missing, 'class', 'classes')} without held-out images" if missing else ""
    labels = _names([name for _, name, _ in shown])
    texts = [f"{share:.1%} of {images:,}" for share, _, images in shown]
    figure = _bars(labels, [100 * share for share, _, _ in shown], texts, heading)
    figure.axes[0].set_xticks(range(0, 101, 20))
    return for_file(figure, "classes", title)


def _bars(labels: Sequence[str], sizes: Sequence[float], texts: Sequence[str], heading: str) -> Any:
    """Returns a figure of horizontal bars, the first on top, each with a text at its end."""
    figure = new_figure(*size_for(len(labels)))
    axes, rows = figure.subplots(), range(len(labels))
    axes.barh(rows, sizes, height=0.7, color=FIRST)
    for row, (size, text) in enumerate(zip(sizes, texts)):
        axes.text(size, row, f" {text}", va="center", color=INK, fontsize=9)
    axes.set_yticks(rows, labels=labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max([*sizes, 1]))
    draw_grid(axes, "x")
    finish_axes(axes, heading)
    return figure


def _names(classes: Sequence[str]) -> List[str]:
    return [plain_text(shortened(name, _LONGEST_NAME)) for name in classes]

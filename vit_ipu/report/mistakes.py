"""Pictures and tables of what a model confuses."""

from __future__ import annotations

import base64
import html
from typing import List, Tuple

from vit_ipu.report.layout import cell, scrolled, table
from vit_ipu.runs.last_evaluation import LastEvaluation, ShownMistake
from vit_ipu.scores import most_confused, per_class
from vit_ipu.text import listed

LARGEST_MATRIX = 30
"""Classes up to which the complete matrix is shown."""
_LONGEST_LEVEL_NAME = 12
"""Characters of a class name above which the matrix's columns have theirs turned."""
MOST_PAIRS = 20
"""Pairs of classes that are listed if there are more classes."""
_SMALL = 64
"""Pixels of a picture's width below which its pixels are shown as squares."""
MOST_LEFT_OUT = 10
"""Classes without held-out images that are named."""
MOST_CLASSES = 50
"""Classes, worst first, whose accuracy is listed."""


def mistakes_grid(evaluation: LastEvaluation) -> str:
    """Returns the worst mistakes with their pictures, as HTML."""
    if not evaluation.mistakes:
        return "<p>There is no mistake to show.</p>"
    shown = "".join(_mistake(mistake, evaluation.classes) for mistake in evaluation.mistakes)
    return f'<ul class="mistakes">{shown}</ul>'


def _mistake(mistake: ShownMistake, classes: List[str]) -> str:
    label, predicted = cell(classes[mistake.label]), cell(classes[mistake.predicted])
    width = int.from_bytes(base64.b64decode(mistake.picture[:32].ljust(32, "A"))[16:20], "big")  # as PNG places it
    kind = ' class="small"' if width < _SMALL else ""
    picture = f'<img{kind} src="data:image/png;base64,{mistake.picture}" alt="{label}, taken for {predicted}">'
    return (
        f"<li>{picture}<br><b>{label}</b>, taken for <b>{predicted}</b> ({mistake.probability:.0%})"
        f"<br><small>{cell(mistake.name)}</small></li>"
    )


def confusion_table(evaluation: LastEvaluation) -> str:
    """Returns the confusion matrix, or the most frequent confusions of many classes, as HTML."""
    classes, matrix = evaluation.classes, evaluation.matrix
    if len(classes) > LARGEST_MATRIX:
        pairs = most_confused(matrix, MOST_PAIRS)
        rows = [(classes[label], classes[predicted], f"{count:,}") for label, predicted, count in pairs]
        return table(rows, head=("class", "taken for", "images"))
    turned = ' class="turned"' if max(map(len, classes)) > _LONGEST_LEVEL_NAME else ""
    head = "".join(f'<th scope="col"{turned}><span>{cell(name)}</span></th>' for name in classes)
    lines = [f"<thead><tr><td></td>{head}</tr></thead>"]
    for name, row in zip(classes, matrix.tolist()):
        cells = "".join(_heat(count, sum(row)) for count in row)
        lines.append(f'<tr><th scope="row">{cell(name)}</th>{cells}</tr>')
    note = "<p>Rows: the class of the images. Columns: what they are taken for.</p>"
    return note + scrolled("Confusion matrix", f'<table class="confusion">{"".join(lines)}</table>')


def _heat(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f'<td style="background: rgba(var(--heat), {0.5 * share:.2f})">{count:,}</td>'


def classes_table(evaluation: LastEvaluation) -> str:
    """Returns the accuracy of each class, worst first, as HTML."""
    found = accuracies(evaluation)
    rows = "".join(_accuracy(*row) for row in found[:MOST_CLASSES])
    more = len(found) - MOST_CLASSES
    note = f"<p>The {MOST_CLASSES} worst of {len(found):,} classes.</p>" if more > 0 else ""
    head = '<tr><th scope="col">class</th><th scope="col">images</th><th scope="col">top-1</th></tr>'
    return f"{note}<table>{head}{rows}</table>{_classes_left_out(evaluation)}"


def _classes_left_out(evaluation: LastEvaluation) -> str:
    """Returns a paragraph that names the first classes without images in the evaluation, as HTML; "" if none."""
    missing = without_images(evaluation)
    if not missing:
        return ""
    return f"<p>Not measured, as no image of them was evaluated: {cell(listed(missing, MOST_LEFT_OUT))}.</p>"


def without_images(evaluation: LastEvaluation) -> List[str]:
    """Returns the names of the classes of which no image was evaluated, by label."""
    return [name for name, (images, _) in zip(evaluation.classes, per_class(evaluation.matrix)) if not images]


def accuracies(evaluation: LastEvaluation) -> List[Tuple[float, str, int]]:
    """Returns the share of right images, the name and the number of images of each class that has any, worst first."""
    counts = zip(evaluation.classes, per_class(evaluation.matrix))
    return sorted((correct / images, name, images) for name, (images, correct) in counts if images)


def _accuracy(share: float, name: str, images: int) -> str:
    bar = f'<span class="bar" style="width: {6 * share:.2f}rem"></span>'
    numbers = f'<td class="number">{images:,}</td><td>{bar} {html.escape(f"{share:.1%}")}</td>'
    return f'<tr><th scope="row">{cell(name)}</th>{numbers}</tr>'

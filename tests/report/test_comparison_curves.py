"""Curves of several runs: they differ by more than their colour, and can be seen on light and dark screens."""

from __future__ import annotations

import re

import pytest
from test_in_browser import contrast

from vit_ipu.report import curves
from vit_ipu.report.colors import COMPARED, STYLE_DARK, STYLE_LIGHT
from vit_ipu.report.drawing import new_figure


def runs(count, updates=3):
    lines = [{"update": update, "loss": 2.0 / update, "top1": 10.0 * update} for update in range(1, updates + 1)]
    return [(f"run {number}", lines) for number in range(count)]


def lines_of(count, key="loss", updates=3):
    axes = new_figure(6, 4).subplots()
    curves._compare(axes, key, runs(count, updates))
    return axes.lines, axes.get_legend()


def test_compared_runs_differ_in_dashes_and_markers_and_not_only_in_colour():
    lines, _ = lines_of(len(curves._DASHES), "top1")
    assert len({line.get_marker() for line in lines}) == len(curves._DASHES) == len(curves._MARKERS)
    assert len({str(line._dash_pattern) for line in lines}) == len(curves._DASHES)


def test_seventy_runs_have_different_lines():
    lines, _ = lines_of(70)
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 70


def test_the_patterns_are_in_the_page_and_in_its_legend():
    svg = curves.comparison_svg(runs(3))
    dashes = re.findall(r"stroke-dasharray: ([0-9., ]+)", svg)
    assert len(set(dashes)) == 2  # the first run's line has no gaps
    assert all(dashes.count(pattern) == 4 for pattern in set(dashes))  # in loss and top-1, each with its legend


def test_the_legend_shows_a_complete_pattern():
    lines, legend = lines_of(len(curves._DASHES))
    longest = max(sum(pattern) for pattern in curves._DASHES) * lines[0].get_linewidth()
    assert legend.handlelength * legend._fontsize >= longest


def test_a_run_of_one_update_is_visible():
    lines, _ = lines_of(2, updates=1)
    assert [line.get_marker() for line in lines] == ["o", "s"]
    assert [line.get_marker() for line in lines_of(2)[0]] == ["", ""]


@pytest.mark.parametrize("style", [STYLE_LIGHT, STYLE_DARK])
def test_the_colours_of_compared_runs_stand_out_on_both_papers(style):
    paper = re.search(r"--paper: (#\w{6})", style)[1]
    assert len(set(COMPARED)) == len(COMPARED)
    for color in COMPARED:  # 3 is the least contrast of graphics by WCAG 2.1, 1.4.11
        assert contrast(rgb(color), rgb(paper)) >= 3, color


def rgb(color):
    return f"rgb({', '.join(str(int(color[start : start + 2], 16)) for start in (1, 3, 5))})"

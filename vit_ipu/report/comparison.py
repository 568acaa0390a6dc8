"""Comparison of several runs: one HTML page with their results, their curves and the settings that differ."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.report.curves import comparison_svg
from vit_ipu.report.figures import figures
from vit_ipu.report.layout import page, scrolled, section, table
from vit_ipu.report.page import config_of, device_of, environment_of
from vit_ipu.report.settings import all_settings
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics

_NONE = "-"


def write_comparison(folders: Sequence[RunFolder], target: Path) -> None:
    """Writes a page that compares two or more runs. Raises UserError if one is not a run folder, or is given twice."""
    environments = [environment_of(folder) for folder in folders]
    runs = named_metrics(folders)
    names, metrics = [name for name, _ in runs], [lines for _, lines in runs]
    configs = [config_of(folder) for folder in folders]
    results = _side_by_side([_results(*of_one) for of_one in zip(environments, configs, metrics)])
    settings = [all_settings(config) for config in configs]
    differing = [row for row in _side_by_side(settings) if len(set(row[1:])) > 1]
    sections = [
        section("Results", scrolled("Results", table(results, head=("result", *names)))),
        section("Curves", scrolled("Curves", comparison_svg(runs))),
        section("Settings that differ", scrolled("Settings that differ", table(differing, head=("setting", *names)))),
    ]
    write_whole(target, page(f"Comparison of {len(folders)} runs", sections))


def one_line_results(folders: Sequence[RunFolder]) -> List[str]:
    """Returns a line on each run: its last top-1, and that before training if it was measured."""
    lines = []
    for name, metrics in named_metrics(folders):
        evaluations = [line for line in metrics if "top1" in line]
        if not evaluations:
            lines.append(f"{name}: no evaluation yet")
            continue
        first, last = evaluations[0], evaluations[-1]
        before = f" (before training {first['top1']:.2f} %)" if first["update"] == 0 < last["update"] else ""
        lines.append(f"{name}: top-1 {last['top1']:.2f} % at update {last['update']:,}{before}")
    return lines


def named_metrics(folders: Sequence[RunFolder]) -> List[Tuple[str, List[Dict[str, Any]]]]:
    """Returns the name and the metrics of each run. Raises UserError if a run is given twice."""
    names = [str(folder.path) for folder in folders]
    places = [os.path.realpath(name) for name in names]
    for name, place in zip(names, places):
        if places.count(place) > 1:
            raise UserError(f"{name} is given twice: compare different runs")
    return [(name, read_metrics(folder.metrics)) for name, folder in zip(names, folders)]


def _results(environment: Dict[str, Any], config: Config, metrics: List[Dict[str, Any]]) -> Dict[str, Any]:
    evaluations = [line for line in metrics if "top1" in line]
    best = max(evaluations, key=lambda line: float(line["top1"]), default=None)
    rows = {"Device": device_of(environment), **dict(figures(metrics, config, simulated=environment["simulated"]))}
    if best is not None:
        rows["Best top-1"] = f"{best['top1']:.2f} % at update {best['update']:,}"
    return rows


def _side_by_side(columns: Sequence[Dict[str, Any]]) -> List[Tuple[str, ...]]:
    """Returns a row for each key that occurs: the key, and its value in each column."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [(key, *(_text(column.get(key)) for column in columns)) for key in keys]


def _text(value: Any) -> str:
    if value is None:
        return _NONE
    return value if isinstance(value, str) else json.dumps(value)

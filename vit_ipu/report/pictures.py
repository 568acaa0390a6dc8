"""The pictures of a report as files: each is an SVG and a PNG that stands alone, on a light background."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence

from vit_ipu.files import write_whole
from vit_ipu.pipeline import BatchPlan
from vit_ipu.report.comparison import named_metrics
from vit_ipu.report.curves import comparison_pictures, curve_pictures
from vit_ipu.report.drawing import Picture
from vit_ipu.report.evaluation_pictures import evaluation_pictures
from vit_ipu.report.memory import memory_picture
from vit_ipu.report.page import config_of, device_of, environment_of, ran_on_ipus, title_of
from vit_ipu.report.shown_evaluation import shown_evaluation
from vit_ipu.report.timetable import timetable_picture
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.weights.native import best_update


def write_pictures(folders: Sequence[RunFolder], target: Path) -> List[Path]:
    """Writes the pictures of a run, or of the comparison of several, into a folder; returns the paths of the files.

    Files of the same names are replaced. Raises UserError if there is no run.
    """
    pictures = _of_run(folders[0]) if len(folders) == 1 else _of_comparison(folders)
    paths = []
    for picture in pictures:
        target.mkdir(parents=True, exist_ok=True)
        paths += [target / f"{picture.name}.svg", target / f"{picture.name}.png"]
        write_whole(paths[-2], picture.svg)
        write_whole(paths[-1], picture.png)
    return paths


def _of_run(folder: RunFolder) -> Iterable[Picture]:
    environment, config, metrics = environment_of(folder), config_of(folder), read_metrics(folder.metrics)
    title = title_of(folder, environment)
    simulated = bool(environment["simulated"])
    evaluation = shown_evaluation(folder, metrics).evaluation
    curves = curve_pictures(metrics, title, best=best_update(folder.path), simulated=simulated)
    shown = evaluation_pictures(evaluation, title) if evaluation is not None else ()

    def pipeline() -> Iterator[Picture]:
        yield timetable_picture(len(config.layers_per_ipu), BatchPlan.of(config).gradient_accumulation)
        yield memory_picture(config, title)

    return chain(curves, shown, pipeline() if ran_on_ipus(environment) else ())


def _of_comparison(folders: Sequence[RunFolder]) -> Iterable[Picture]:
    devices = [device_of(environment_of(folder)) for folder in folders]
    runs = [(f"{name} ({device})", metrics) for (name, metrics), device in zip(named_metrics(folders), devices)]
    return comparison_pictures(runs, f"Comparison of {len(folders)} runs")

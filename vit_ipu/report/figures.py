"""Results of a run as the rows of a table: they begin the report, also before the first evaluation."""

from __future__ import annotations

from statistics import median
from typing import Any, Dict, List, Optional, Tuple

from vit_ipu.config import Config
from vit_ipu.runs.metrics import sum_of_overflows
from vit_ipu.text import counted

_NUM_SPEEDS = 10
"""Steps, the last ones, of whose speeds the median is shown."""
Rows = List[Tuple[str, str]]


def figures(
    metrics: List[Dict[str, Any]],
    config: Config,
    *,
    total_updates: Optional[int] = None,
    simulated: bool = False,
) -> Rows:
    """Returns the rows of the table of results: last evaluation, last training step, speed, and overflows.

    `total_updates` of the complete run are named beside those of a run that has ended before.
    """
    steps = [line for line in metrics if "loss" in line]
    rows = _accuracy(metrics, config, total_updates) + _training(steps, config, total_updates)
    speeds = [line["images_per_second"] for line in steps if "images_per_second" in line][-_NUM_SPEEDS:]
    if speeds:
        name = "Images/s of the simulation" if simulated else "Images/s"
        speed = median(speeds)
        rows.append((name, f"{speed:,.0f}" if speed >= 100 else f"{speed:,.1f}"))
    overflows = sum_of_overflows(metrics)
    if overflows is not None:
        rows.append(("Float16 overflows", f"{counted(overflows, 'value')} became 65504"))
    return rows


def _accuracy(metrics: List[Dict[str, Any]], config: Config, total_updates: Optional[int]) -> Rows:
    evaluations = [line for line in metrics if "top1" in line]
    update = max((line["update"] for line in metrics), default=0)
    if not evaluations:
        return [("Top-1, top-5", f"not measured yet: {_next_evaluation(update, config, total_updates)}")]
    last = evaluations[-1]
    where = f" at update {last['update']:,}" if last["update"] < update else ""
    rows = [(f"Top-1, top-5{where}", f"{last['top1']:.2f} %, {last['top5']:.2f} %")]
    if evaluations[0]["update"] == 0:
        rows.append(("Top-1 before training", f"{evaluations[0]['top1']:.2f} %"))
    return [*rows, ("Held-out loss", f"{last['evaluation_loss']:.4f}")]


def _next_evaluation(update: int, config: Config, total_updates: Optional[int]) -> str:
    """Returns when a run that has come to this update, without an evaluation, is evaluated first.

    That may be this update, whose evaluation has not ended yet or was interrupted.
    """
    every, total = config.run.evaluate_every, total_updates or config.run.updates
    if update == 0 and config.run.evaluate_at_start:
        return "the first evaluation comes before the first update"
    following = None if every is None else every * max(1, -(-update // every))
    if following is not None and (total is None or following < total):
        return f"the first evaluation comes after update {following:,}"
    return "the first evaluation comes at the end" + ("" if total is None else f", after update {total:,}")


def _training(steps: List[Dict[str, Any]], config: Config, total_updates: Optional[int]) -> Rows:
    if not steps:
        every = config.run.log_every
        rhythm = "" if every == 1 else f"; run.log_every logs every {every:,} host steps"
        return [("Updates, samples", f"none logged yet{rhythm}")]
    last = steps[-1]
    ended_before = total_updates is not None and last["update"] < total_updates
    of_all = f" of {total_updates:,}" if ended_before else ""
    return [
        ("Updates, samples", f"{last['update']:,}{of_all}, {last['samples']:,}"),
        ("Training loss", f"{last['loss']:.4f}"),
    ]

"""The report of a run: one HTML page with curves, the pipeline's timetable and the config, and nothing outside it."""

from __future__ import annotations

import html
import io
from typing import Any, Dict, List, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.pipeline import BatchPlan, Slot, num_cycles, num_stages, place_units, timetable, utilisation
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics

_CELL, _ROW, _LEFT, _TOP = 26, 34, 64, 22
_FORWARD, _BACKWARD, _INK, _GRID = "#3b73b9", "#d9822b", "#222222", "#dddddd"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.notice {{ background: #fff4dc; border-left: 4px solid #d9822b; padding: .5rem .8rem; }}
.wide {{ overflow-x: auto; }} svg {{ height: auto; }}
table {{ border-collapse: collapse; }} td, th {{ text-align: left; padding: .15rem 1rem .15rem 0; }}
th {{ font-weight: 600; }} pre {{ background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; }}
</style></head><body>
<h1>{title}</h1>
{notice}
{figures}
<h2>Curves</h2>
<div class="wide">{curves}</div>
<h2>Pipeline</h2>
{pipeline}
<h2>Environment</h2>
{environment}
<h2>Config</h2>
<pre>{config}</pre>
</body></html>
"""


def write_report(folder: RunFolder) -> None:
    """Writes report.html of a run folder, finished or not. Raises UserError if it is not one."""
    environment = folder.read_environment()
    config = load_config(folder.config)
    metrics = read_metrics(folder.metrics)
    page = _PAGE.format(
        title=html.escape("{} on {}".format(folder.path.name, environment["device"])),
        notice=_notice(environment),
        figures=_table(_figures(metrics)),
        curves=curves_svg(metrics) if metrics else "<p>No metrics yet.</p>",
        pipeline=_pipeline(config),
        environment=_table(_environment(environment)),
        config=html.escape(folder.config.read_text(encoding="utf-8")),
    )
    folder.report.write_text(page, encoding="utf-8")


def _notice(environment: Dict[str, Any]) -> str:
    if not environment["simulated"]:
        return ""
    return '<p class="notice">Simulated: no IPU was used. Accuracy is computed; speed says nothing of an IPU.</p>'


def _figures(metrics: List[Dict[str, Any]]) -> List[Tuple[str, str]]:
    steps = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "top1" in line]
    rows = []
    if evaluations:
        last = evaluations[-1]
        rows.append(("Top-1, top-5", "{:.2f} %, {:.2f} %".format(last["top1"], last["top5"])))
        rows.append(("Held-out loss", "{:.4f}".format(last["evaluation_loss"])))
    if steps:
        last = steps[-1]
        rows.append(("Updates, samples", "{:,}, {:,}".format(last["update"], last["samples"])))
        rows.append(("Training loss", "{:.4f}".format(last["loss"])))
    return rows


def _environment(environment: Dict[str, Any]) -> List[Tuple[str, str]]:
    versions = ", ".join("{} {}".format(*item) for item in environment["versions"].items())
    return [
        ("Device", "{} ({})".format(environment["device"], environment["hardware"])),
        ("Simulated", "yes" if environment["simulated"] else "no"),
        ("Precision", environment["compute"]),
        ("Versions", "vit_ipu {}, Python {}, {}".format(environment["vit_ipu"], environment["python"], versions)),
        ("Commit", environment["commit"] or "not a checkout"),
        ("Command", " ".join(environment["command"])),
        ("Started", environment["time"]),
        *[("Resumed", "{time} on {device}".format(**facts)) for facts in environment.get("resumed", [])],
    ]


def _table(rows: Sequence[Tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


# ------------------------------------------------------------------------------------------ curves


def curves_svg(metrics: List[Dict[str, Any]]) -> str:
    """Loss, accuracy, learning rate and speed over updates, as SVG."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    loss, accuracy, rate, speed = figure.subplots(2, 2).flat
    _curve(loss, metrics, "loss", "training", _FORWARD)
    _curve(loss, metrics, "evaluation_loss", "held out", _BACKWARD, marker="o")
    _curve(accuracy, metrics, "top1", "top-1", _FORWARD, marker="o")
    _curve(accuracy, metrics, "top5", "top-5", _BACKWARD, marker="o")
    _curve(rate, metrics, "learning_rate", None, _FORWARD)
    _curve(speed, metrics, "images_per_second", None, _FORWARD)
    for axes, title in (
        (loss, "Loss (nats)"),
        (accuracy, "Accuracy (%)"),
        (rate, "Learning rate"),
        (speed, "Images/s"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("update")
        axes.grid(color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return text.getvalue()[text.getvalue().index("<svg") :]


def _curve(axes: Any, metrics: List[Dict[str, Any]], key: str, label: Any, color: str, marker: str = "") -> None:
    points = [(line["update"], line[key]) for line in metrics if key in line]
    if points:
        axes.plot(*zip(*points), color=color, label=label, marker=marker, markersize=4, linewidth=1.4)


# --------------------------------------------------------------------------------------- timetable


def _pipeline(config: Config) -> str:
    plan, ipus = BatchPlan.of(config), len(config.layers_per_ipu)
    rows = [(f"IPU {ipu}", ", ".join(units)) for ipu, units in enumerate(place_units(config.layers_per_ipu))]
    rows += [
        ("Replicas", str(plan.replication_factor)),
        (
            "Global batch",
            f"{plan.global_batch_size:,} = micro-batch {plan.micro_batch_size} x accumulation "
            f"{plan.gradient_accumulation} x replicas {plan.replication_factor}",
        ),
        (
            "Cycles of an update",
            f"{num_cycles(ipus, plan.gradient_accumulation):,}, of which an IPU works in "
            f"{utilisation(ipus, plan.gradient_accumulation):.1%} at most",
        ),
    ]
    picture = timetable_svg(ipus, plan.gradient_accumulation)
    return f'{_table(rows)}<div class="wide">{picture}</div>'


def timetable_svg(num_ipus: int, gradient_accumulation: int) -> str:
    """The timetable of one weight update as SVG: rows are IPUs, columns are cycles, numbers are micro-batches.

    A long update is drawn with fewer micro-batches; the cycles that are left out repeat those in the middle.
    """
    drawn = min(gradient_accumulation, 2 * num_stages(num_ipus) + 4)
    slots, cycles = timetable(num_ipus, drawn), num_cycles(num_ipus, drawn)
    width, height = _LEFT + max(cycles * _CELL, 520) + 8, _TOP + num_ipus * _ROW + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">'
    ]
    parts += [_label(6, _TOP + ipu * _ROW + 20, f"IPU {ipu}", anchor="start") for ipu in range(num_ipus)]
    both = {(slot.cycle, slot.ipu) for slot in slots if slot.backward} & {
        (slot.cycle, slot.ipu) for slot in slots if not slot.backward
    }
    parts += [_slot(slot, half=(slot.cycle, slot.ipu) in both) for slot in slots]
    parts += _legend(_TOP + num_ipus * _ROW + 28, drawn, gradient_accumulation)
    return "\n".join(parts + ["</svg>"])


def _slot(slot: Slot, *, half: bool) -> str:
    x, y = _LEFT + slot.cycle * _CELL, _TOP + slot.ipu * _ROW
    height = (_ROW - 6) // 2 if half else _ROW - 6
    if half and slot.backward:
        y += height
    color = _BACKWARD if slot.backward else _FORWARD
    box = f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{height}" fill="{color}" rx="2"/>'
    return box + _label(x + _CELL // 2 - 1, y + height // 2 + 4, str(slot.micro_batch), color="#ffffff")


def _legend(y: int, drawn: int, gradient_accumulation: int) -> List[str]:
    parts = []
    for x, color, text in ((_LEFT, _FORWARD, "forward"), (_LEFT + 84, _BACKWARD, "backward")):
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{color}" rx="2"/>')
        parts.append(_label(x + 17, y, text, anchor="start"))
    note = "numbers: micro-batches of one weight update"
    if drawn < gradient_accumulation:
        note += f", drawn for {drawn} of {gradient_accumulation}"
    return parts + [_label(_LEFT + 180, y, note, anchor="start")]


def _label(x: int, y: int, text: str, *, anchor: str = "middle", color: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{text}</text>'

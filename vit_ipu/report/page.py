"""Report of a run: one self-contained HTML page with curves, the pipeline's timetable and the config."""

from __future__ import annotations

import html
from typing import Any, Dict, List, Sequence, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.pipeline import BatchPlan, num_cycles, place_units, utilisation
from vit_ipu.report.curves import curves_svg
from vit_ipu.report.timetable import timetable_svg
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.metrics import read_metrics, sum_of_overflows
from vit_ipu.small_files import read_text
from vit_ipu.text import escaped

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
    """Writes report.html of a finished or unfinished run. Raises UserError if the folder is not a run folder."""
    environment = folder.read_environment()
    config = load_config(folder.config)
    metrics = read_metrics(folder.metrics)
    try:
        rows = _environment(environment)
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{folder.environment} is damaged: it must be the JSON object that the run wrote") from None
    page = _PAGE.format(
        title=html.escape(escaped(f"{folder.path.name} on {_device(environment)}")),
        notice=_notice(environment),
        figures=_table(figures(metrics)),
        curves=curves_svg(metrics) if metrics else "<p>No metrics yet.</p>",
        pipeline=_pipeline(config),
        environment=_table(rows),
        config=html.escape(read_text(folder.config)),
    )
    write_whole(folder.report, page)  # replaces a link instead of writing to its target


def _notice(environment: Dict[str, Any]) -> str:
    if not environment["simulated"]:
        return ""
    return '<p class="notice">Simulated: no IPU was used. Accuracy is computed; the speed is not that of an IPU.</p>'


def figures(metrics: List[Dict[str, Any]]) -> List[Tuple[str, str]]:
    """Returns the rows of the table of results: the last evaluation, the last training loss, and the overflows."""
    steps = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "top1" in line]
    rows = []
    if evaluations:
        last = evaluations[-1]
        rows.append(("Top-1, top-5", f"{last['top1']:.2f} %, {last['top5']:.2f} %"))
        rows.append(("Held-out loss", f"{last['evaluation_loss']:.4f}"))
    if steps:
        last = steps[-1]
        rows.append(("Updates, samples", f"{last['update']:,}, {last['samples']:,}"))
        rows.append(("Training loss", f"{last['loss']:.4f}"))
    overflows = sum_of_overflows(metrics)
    if overflows is not None:
        rows.append(("Float16 overflows", f"{overflows:,} values became 65504"))
    return rows


def _environment(environment: Dict[str, Any]) -> List[Tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return [
        ("Device", f"{_device(environment)} ({environment['hardware']})"),
        ("Simulated", "yes" if environment["simulated"] else "no"),
        ("Precision", environment["compute"]),
        ("Versions", f"vit_ipu {environment['vit_ipu']}, Python {environment['python']}, {versions}"),
        ("Commit", environment["commit"] or "not a checkout"),
        ("Command", " ".join(environment["command"])),
        ("Started", environment["time"]),
        *[("Resumed", f"{facts['time']} on {_device(facts)}") for facts in environment.get("resumed", [])],
    ]


def _device(environment: Dict[str, Any]) -> str:
    """Returns the device, with the numerics if it was simulated by a version that states them."""
    numerics = environment.get("numerics")
    return f"{environment['device']}, {numerics} numerics" if numerics else str(environment["device"])


def _table(rows: Sequence[Tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(escaped(str(value)))}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


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
            f"{num_cycles(ipus, plan.gradient_accumulation):,}, of which an IPU works in at most "
            f"{utilisation(ipus, plan.gradient_accumulation):.1%}",
        ),
    ]
    picture = timetable_svg(ipus, plan.gradient_accumulation)
    return f'{_table(rows)}<div class="wide">{picture}</div>'

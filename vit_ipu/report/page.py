"""Report of a run: one self-contained HTML page of mistakes, curves, the pipeline, the environment and the config."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from vit_ipu.config import Config
from vit_ipu.config_file import changed_settings, load_config
from vit_ipu.errors import UserError
from vit_ipu.files import write_whole
from vit_ipu.pipeline import BatchPlan, num_cycles, place_units, utilisation
from vit_ipu.report.curves import curves_svg
from vit_ipu.report.figures import figures
from vit_ipu.report.layout import cell, page, scrolled, section, table
from vit_ipu.report.memory import memory_table
from vit_ipu.report.mistakes import classes_table, confusion_table, mistakes_grid
from vit_ipu.report.shown_evaluation import ShownEvaluation, shown_evaluation
from vit_ipu.report.timetable import timetable_svg
from vit_ipu.runs.folder import RunFolder
from vit_ipu.runs.last_evaluation import LastEvaluation
from vit_ipu.runs.metrics import read_metrics
from vit_ipu.small_files import read_text
from vit_ipu.text import Notify, escaped, reason_of
from vit_ipu.weights.native import best_update, load_description

_MOST_SKIPPED = 50
"""Skipped images that the page lists."""


def write_report(folder: RunFolder, target: Optional[Path] = None, *, notify: Notify = lambda text: None) -> None:
    """Writes report.html of a finished or unfinished run, or another file. Raises UserError if there is no run.

    `notify` receives a note if the run was evaluated, but its mistakes cannot be shown.
    """
    environment = environment_of(folder)
    config = config_of(folder)
    metrics = read_metrics(folder.metrics)
    rows = environment_rows(environment)
    shown = shown_evaluation(folder, metrics)
    if shown.missing is not None:
        notify(f"note: {shown.missing}")
    sections = [
        _notice(environment),
        table(figures(metrics, config, total_updates=_total_updates(folder), simulated=environment["simulated"])),
        _predictions(shown),
        section("Curves", _curves(metrics, best_update(folder.path)) + _note_on_loss(config)),
        section("Pipeline", _pipeline(config)) if ran_on_ipus(environment) else "",
        section("Skipped images", _skipped(folder)) if folder.skipped.exists() else "",
        section("Environment", table(rows)),
        section("Config", _config(config, read_text(folder.config))),
    ]
    html_text = page(title_of(folder, environment), sections)
    write_whole(target or folder.report, html_text)  # replaces a link instead of writing to its target


def title_of(folder: RunFolder, environment: Dict[str, Any]) -> str:
    """Returns the title of a run's page and pictures: the name of the run's folder, and the device."""
    return f"{folder.path.resolve().name} on {device_of(environment)}"


def environment_of(folder: RunFolder) -> Dict[str, Any]:
    """Returns what a run ran on. Raises UserError if its file is missing, or is not what the run wrote."""
    environment = folder.read_environment()
    try:
        environment_rows(environment)
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{folder.environment} is damaged: it must be the JSON object that the run wrote") from None
    return environment


def config_of(folder: RunFolder) -> Config:
    """Returns the config of a run. Raises UserError if its file is missing or not a file, or ConfigError."""
    if not folder.config.is_file():
        raise UserError(
            f"{folder.config} is missing or not a file: restore it, for example from the config that the run was "
            "started with"
        )
    return load_config(folder.config)


def _notice(environment: Dict[str, Any]) -> str:
    if not environment["simulated"]:
        return ""
    return '<p class="notice">Simulated: no IPU was used. Accuracy is computed; the speed is not that of an IPU.</p>'


def _total_updates(folder: RunFolder) -> Optional[int]:
    """Returns the number of updates of the complete run; None if no checkpoint tells it."""
    newest = folder.newest_checkpoint()
    try:
        trained = None if newest is None else load_description(newest).trained
        return None if trained is None else trained.config.total_updates(trained.num_train)
    except UserError:  # the checkpoint is damaged
        return None


def _predictions(shown: ShownEvaluation) -> str:
    """Returns the sections on what the model predicts, or why there are none."""
    evaluation = shown.evaluation
    if evaluation is None:
        return "" if shown.missing is None else section("Worst mistakes", f"<p>{cell(shown.missing)}</p>")
    where = f"<p>Evaluation at update {evaluation.update:,}.{_share(evaluation)}</p>"
    parts = [section("Worst mistakes", where + mistakes_grid(evaluation))]
    if evaluation.confusion:
        parts.append(section("Confusions", confusion_table(evaluation)))
        parts.append(section("Accuracy by class", classes_table(evaluation)))
    return "\n".join(parts)


def _share(evaluation: LastEvaluation) -> str:
    """Returns which images the mistakes are from, if they are not from all of them."""
    if not evaluation.is_searched_in_part:
        return ""
    return (
        f" The mistakes shown are those among the {evaluation.num_searched:,} images that the first process of "
        f"torchrun evaluated, of {evaluation.num_images:,} in all; all other figures count every image."
    )


def _curves(metrics: List[Dict[str, Any]], best: Optional[int]) -> str:
    return scrolled("Curves", curves_svg(metrics, best=best)) if metrics else "<p>No metrics yet.</p>"


def _note_on_loss(config: Config) -> str:
    """Returns why the training loss lies above the held-out loss, if it does because of the config."""
    data, model = config.data, config.model
    reasons = [
        (config.optim.label_smoothing > 0, "label smoothing"),
        (config.optim.class_weights is not None, "class weights"),
        (data.sampling == "balanced", "balanced sampling"),
        (data.mixup_alpha > 0, "mixup"),
        (data.cutmix_alpha > 0, "cutmix"),
        (model.dropout > 0 or model.attention_dropout > 0 or model.drop_path > 0, "dropout"),
        (data.rand_augment is not None or data.auto_augment is not None, "augmentation"),
    ]
    named = [reason for holds, reason in reasons if holds]
    if not named:
        return ""
    return f"<p>The training loss is that of training with {', '.join(named)}; the held-out loss is without.</p>"


def _skipped(folder: RunFolder) -> str:
    try:
        lines = read_text(folder.skipped).splitlines()
    except (OSError, ValueError) as error:
        return f"<p>{html.escape(escaped(f'{folder.skipped.name} cannot be read: {reason_of(error)}'))}</p>"
    items = "".join(f"<li>{html.escape(escaped(line))}</li>" for line in lines[:_MOST_SKIPPED])
    more = f"<p>{len(lines) - _MOST_SKIPPED:,} more are in {folder.skipped.name}.</p>"
    return f"<ul>{items}</ul>{more if len(lines) > _MOST_SKIPPED else ''}"


def _config(config: Config, text: str) -> str:
    """Returns the settings that differ from the defaults, and all of them folded."""
    changed = scrolled("Settings that differ from the defaults", html.escape(changed_settings(config)), tag="pre")
    everything = scrolled("All settings", html.escape(text), tag="pre")
    return f"{changed}<details><summary>All settings</summary>{everything}</details>"


def environment_rows(environment: Dict[str, Any]) -> List[Tuple[str, str]]:
    """Returns the rows of the table of what the run ran on."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return [
        ("Device", f"{device_of(environment)} ({environment['hardware']})"),
        ("Simulated", "yes" if environment["simulated"] else "no"),
        ("Precision", environment["compute"]),
        ("Versions", f"vit_ipu {environment['vit_ipu']}, Python {environment['python']}, {versions}"),
        ("Commit", environment["commit"] or "not a checkout"),
        ("Command", " ".join(environment["command"])),
        ("Started", environment["time"]),
        *[("Resumed", f"{facts['time']} on {device_of(facts)}") for facts in environment.get("resumed", [])],
    ]


def device_of(environment: Dict[str, Any]) -> str:
    """Returns the device, with the numerics if it was simulated by a version that states them."""
    numerics = environment.get("numerics")
    return f"{environment['device']}, {numerics} numerics" if numerics else str(environment["device"])


def ran_on_ipus(environment: Dict[str, Any]) -> bool:
    """Tells whether a run was on IPUs or on simulated ones."""
    return str(environment["device"]).startswith("ipu")


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
    picture = scrolled("Timetable of an update", timetable_svg(ipus, plan.gradient_accumulation))
    return f"{table(rows)}{picture}{memory_table(config)}"

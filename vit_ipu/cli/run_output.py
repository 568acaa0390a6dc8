"""Output of the commands that run a model: train, evaluate, predict, compile, benchmark."""

from __future__ import annotations

import csv
import io
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence

from vit_ipu.cli.json_output import print_json
from vit_ipu.text import Notify, counted, escaped

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends.contract import Device
    from vit_ipu.benchmark import Throughput
    from vit_ipu.config import Config
    from vit_ipu.evaluate import CheckpointEvaluation
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import Summary


def print_run_header(console: Console, config: Config, device: Device, folder: RunFolder) -> None:
    """Prints the device, the batch sizes and the run folder of a run that is about to start."""
    from vit_ipu.backends.build import describe_hardware
    from vit_ipu.pipeline import BatchPlan
    from vit_ipu.planner.program import count_trained

    ipus = len(config.layers_per_ipu)
    compute = config.precision.resolve_compute(device.kind)
    console.print(f"{device}: {describe_hardware(device)}, {compute}")
    each = f", on {counted(ipus, 'IPU')} each" if device.kind in ("ipu", "ipu-sim") else ""
    console.print(f"{BatchPlan.of(config).equation}{each}")
    if config.optim.freeze:
        trained, total = count_trained(config)
        console.print(f"trains {trained:,} of {counted(total, 'parameter')}")
    console.print(f"run folder {folder.path}")


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Prints notes on settings of a config."""
    for note in notes:
        console.print(f"note: {note}")


def print_summary(console: Console, summary: Summary, folder: RunFolder, device: Device, *, as_json: bool) -> None:
    """Prints the result of a run, or how to continue an interrupted one."""
    from vit_ipu.weights.native import best_update

    progress = summary.progress
    if as_json:
        print_json(_summary_values(summary, folder, device))
    elif summary.evaluation is None or summary.interrupted:
        console.print(
            f"interrupted at update {progress.update:,} of {summary.total_updates:,}; continue with: "
            f"{_command_to_resume(folder, device)}"
        )
    else:
        console.print(
            f"top-1 {summary.evaluation.top1:.2f} % after {counted(progress.update, 'update')}, "
            f"{summary.seconds:.0f} s in this process"
        )
        best = best_update(folder.path)
        if best is not None and best != progress.update:
            console.print(f"the best checkpoint is that of update {best:,}; {folder.path} now means it")
        console.print(f"report {folder.report}")
    if not as_json and summary.overflows is not None:
        console.print(f"float16 overflow: {counted(summary.overflows, 'value')} became 65504")


def _summary_values(summary: Summary, folder: RunFolder, device: Device) -> Dict[str, Any]:
    values = summary.evaluation.figures if summary.evaluation is not None else {}
    return dict(
        values,
        run=str(folder.path),
        update=summary.progress.update,
        total_updates=summary.total_updates,
        stopped_early=summary.stopped_early,
        samples=summary.progress.samples,
        seconds=summary.seconds,
        checkpoint=str(summary.checkpoint) if summary.checkpoint is not None else None,
        overflows=summary.overflows,
        **device.facts,
    )


def _command_to_resume(folder: RunFolder, device: Device) -> str:
    """Returns this process's command, with the options that continue the run, and without --restart.

    The numerics are among the options also if the simulator's launcher chose them.
    """
    arguments = ["vit-ipu", *(argument for argument in sys.argv[1:] if argument != "--restart")]
    if not _has_option(arguments, "--output"):
        arguments += ["--output", str(folder.path)]
    if device.numerics not in (None, "exact") and not _has_option(arguments, "--numerics"):
        arguments += ["--numerics", str(device.numerics)]
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and processes == os.environ.get("LOCAL_WORLD_SIZE"):  # torchrun on one host
        arguments[:1] = ["torchrun", "--standalone", "--nproc-per-node", processes, "-m", "vit_ipu"]
    return shlex.join(arguments if "--resume" in arguments else [*arguments, "--resume"])


def _has_option(arguments: List[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def _by_class(found: CheckpointEvaluation) -> Dict[str, Any]:
    """Returns the accuracy of each class, and the confusion matrix, by class and by predicted class."""
    if found.per_class is None:
        return {}
    return {"per_class": found.per_class, "confusion": found.confusion}


_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with in spreadsheet programs; the last four are full-width forms (OWASP, CSV injection)."""


def write_predictions(path: Path, found: CheckpointEvaluation, notify: Notify) -> None:
    """Writes a line of CSV for each held-out image: its name, class, predicted class, probability and loss.

    Names stay as they are, for programs that read the file; `notify` receives a warning if a spreadsheet would take a
    name for a formula.
    """
    from vit_ipu.files import write_whole

    scores, source = found.evaluation.scores, found.source
    assert scores is not None
    columns = (scores.indices, scores.labels, scores.predicted, scores.probabilities, scores.losses)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "class", "predicted", "probability", "loss"))
    formula = None
    for index, label, predicted, probability, loss in zip(*(column.tolist() for column in columns)):
        names = [escaped(name) for name in (source.name(index), source.classes[label], source.classes[predicted])]
        formula = formula or next((name for name in names if name.startswith(_FORMULA)), None)
        writer.writerow((*names, f"{probability:.6f}", f"{loss:.6f}"))
    write_whole(path, text.getvalue())
    if formula is not None:
        notify(
            f"warning: {path} has names that a spreadsheet program takes for formulas, such as {formula}: import its "
            "columns as text"
        )


def print_evaluation(console: Console, found: CheckpointEvaluation, device: Device, *, as_json: bool) -> None:
    """Prints the result of an evaluation."""
    evaluation = found.evaluation
    for skipped in found.skipped:
        console.print(f"skipped: {skipped}")
    if as_json:
        run = {"checkpoint": str(found.checkpoint), **device.facts}
        print_json(dict(evaluation.figures, **_by_class(found), skipped=list(found.skipped), **run))
        return
    console.print(f"top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %, loss {evaluation.loss:.4f}")
    console.print(f"{counted(evaluation.num_images, 'image')}, {found.checkpoint}")


def print_prediction_file(
    console: Console, path: Path, count: int, unreadable: Dict[str, str], device: Device, *, as_json: bool
) -> None:
    """Prints the file that predictions were written to, and their number; the JSON has the errors of other images."""
    if as_json:
        print_json({"output": str(path), "num_images": count, "unreadable": unreadable, **device.facts})
    else:
        console.print(f"{path}: predictions for {counted(count, 'image')}")


def print_compilation(console: Console, config: Config, device: Device, seconds: float, *, as_json: bool) -> None:
    """Prints the result of a compilation."""
    if as_json:
        print_json({**device.facts, "seconds": seconds})
    elif device.simulated:
        console.print("PopTorch's rules hold for this model and config (simulated: nothing was compiled)")
    else:
        console.print(f"compiled in {seconds:.0f} s into {config.pipeline.executable_cache}")


def print_throughput(console: Console, config: Config, device: Device, found: Throughput, *, as_json: bool) -> None:
    """Prints images per second; the JSON also has config and environment, so that it can serve as a record."""
    from vit_ipu.runs.environment import environment

    if as_json:
        print_json(dict(asdict(found), config=config.model_dump(mode="json"), **environment(config, device)))
        return
    how = f"simulated, {device.numerics} numerics" if device.simulated else "measured"
    fast, slow = found.quartiles
    console.print(
        f"{found.images_per_second:,.1f} images/s ({how}; quartiles {slow:,.1f} and {fast:,.1f} of "
        f"{counted(len(found.seconds), 'host step')} of {counted(found.samples_per_step, 'image')})"
    )
    if found.matrix_rate is not None and found.share_of_matrix_rate is not None:
        memory = "" if found.peak_bytes is None else f"; peak memory {found.peak_bytes / 2**30:.1f} GiB"
        console.print(
            f"{100 * found.share_of_matrix_rate:.1f} % of the {found.matrix_rate / 1e12:,.2f} TFLOP/s that one large "
            f"matrix product reaches here{memory}"
        )
    parts = ", ".join(f"{name} {1e3 * seconds:,.1f} ms" for name, seconds in found.parts.items())
    console.print(f"where a host step's time goes: {parts}")

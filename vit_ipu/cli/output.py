"""Output of the commands: text for people, or one JSON object."""

import csv
import io
import json
import os
import shlex
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from vit_ipu.text import Notify, counted, escaped, message

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends.contract import Device
    from vit_ipu.benchmark import Throughput
    from vit_ipu.check import CheckReport, Finding
    from vit_ipu.config import Config
    from vit_ipu.data.packing.pack import PackedSplit
    from vit_ipu.evaluate import CheckpointEvaluation
    from vit_ipu.init import Started
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import Summary
    from vit_ipu.weights.read import Weights


def print_json(value: Dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))


# ------------------------------------------------------------------------------------------- train


def print_run_header(console: "Console", config: "Config", device: "Device", folder: "RunFolder") -> None:
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


def print_notes(console: "Console", notes: Sequence[str]) -> None:
    """Prints notes on settings of a config."""
    for note in notes:
        console.print(f"note: {note}")


def print_summary(
    console: "Console", summary: "Summary", folder: "RunFolder", device: "Device", *, as_json: bool
) -> None:
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
            f"{summary.seconds:.0f} s in "
            "this process"
        )
        best = best_update(folder.path)
        if best is not None and best != progress.update:
            console.print(f"the best checkpoint is that of update {best:,}; {folder.path} now means it")
        console.print(f"report {folder.report}")
    if not as_json and summary.overflows is not None:
        console.print(f"float16 overflow: {counted(summary.overflows, 'value')} became 65504")


def _summary_values(summary: "Summary", folder: "RunFolder", device: "Device") -> Dict[str, Any]:
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


def _command_to_resume(folder: "RunFolder", device: "Device") -> str:
    """Returns this process's command, with the options that continue the run.

    The numerics are among the options also if the simulator's launcher chose them.
    """
    arguments = ["vit-ipu", *sys.argv[1:]]
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


# --------------------------------------------------------------------------------- init and config


def print_started(console: "Console", found: "Started", *, as_json: bool) -> None:
    """Prints what `init` found in the folder, the model, the config that it wrote, and the next command."""
    folder = found.folder
    if as_json:
        values = dict(asdict(folder), config=str(found.path), model=found.model, device=found.device)
        print_json(dict(values, next=found.train_command))
        return
    images = f"{counted(folder.num_train, 'image')} to train on ({folder.fewest:,} to {folder.most:,} a class)"
    console.print(
        f"{folder.path}: {counted(len(folder.classes), 'class', 'classes')}, {images}, {folder.num_eval:,} held out"
    )
    if folder.holdout is not None:
        console.print(f"held out: {100 * folder.holdout:g} % of each class, chosen by the names of the files")
    console.print(
        f"median size: {folder.width} x {folder.height} pixels, of {counted(folder.num_probed, 'image')} looked at"
    )
    if folder.unreadable:
        console.print(
            f"{len(folder.unreadable)} of {folder.num_probed:,} cannot be read and are left out in training "
            f"(data.on_error: skip), such as: {folder.unreadable[0]}"
        )
    console.print(f"model: {found.model}")
    console.print(f"wrote {found.path}, for {found.device}; train with:")
    console.print(f"  {found.train_command}")


def print_config(config: "Config", *, as_json: bool) -> None:
    """Prints a config with all its keys."""
    from vit_ipu.config_file import dump_config

    if as_json:
        print_json(config.model_dump(mode="json"))
    else:
        print(dump_config(config), end="")


def print_shipped(shipped: Dict[str, str], *, as_json: bool) -> None:
    """Prints the names of the shipped configs, each with what it is for."""
    if as_json:
        print_json({"configs": shipped})
        return
    for name, purpose in shipped.items():
        print(name)
        print(textwrap.fill(purpose, 79, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    print()
    print("vit-ipu config NAME shows one; vit-ipu train NAME trains it; vit-ipu init FOLDER")
    print("writes one for your images.")


# ------------------------------------------------------------------------------ evaluate and predict


def _by_class(found: "CheckpointEvaluation") -> Dict[str, Any]:
    """Returns the accuracy of each class, and the confusion matrix, by class and by predicted class."""
    from vit_ipu.scores import per_class

    confusion = found.evaluation.confusion
    if confusion is None:
        return {}
    classes = [
        {"class": name, "num_images": images, "top1": 100 * correct / images if images else None}
        for name, (images, correct) in zip(found.source.classes, per_class(confusion))
    ]
    return {"per_class": classes, "confusion": confusion.tolist()}


_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with in spreadsheet programs; the last four are full-width forms (OWASP, CSV injection)."""


def write_predictions(path: Path, found: "CheckpointEvaluation", notify: Notify) -> None:
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


def print_evaluation(console: "Console", found: "CheckpointEvaluation", device: "Device", *, as_json: bool) -> None:
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
    console: "Console", path: Path, count: int, unreadable: Dict[str, str], device: "Device", *, as_json: bool
) -> None:
    """Prints the file that predictions were written to, and their number; the JSON has the errors of other images."""
    if as_json:
        print_json({"output": str(path), "num_images": count, "unreadable": unreadable, **device.facts})
    else:
        console.print(f"{path}: predictions for {counted(count, 'image')}")


# ------------------------------------------------------------------------------- compile, benchmark


def print_check(console: "Console", name: str, report: "CheckReport", *, as_json: bool) -> None:
    """Prints what PopTorch would refuse in a config and its model, with the place and the remedy; then the verdict."""
    if as_json:
        print_json(report.as_values())
        return
    for violation in report.violations:
        _print_wrapped(console, "refused: ", violation)
    for finding, programs in report.findings():
        console.print()
        for label, text in _lines_of(finding, programs):
            _print_wrapped(console, label, text)
    if report.violations or report.findings():
        console.print()
    for program in report.programs:
        what = f"{counted(program.num_operations, 'operation')} of {counted(program.num_kinds, 'kind')}"
        console.print(f"{program.name}: {what}, {counted(len(program.refused), 'place')} refused")
        if program.stopped is not None:
            _print_wrapped(console, "not judged to its end: ", program.stopped)
    console.print(f"settings: {counted(report.num_rules, 'rule')}, {len(report.violations)} violated")
    verdict = "would accept" if report.accepted else "would refuse"
    _print_wrapped(console, "", f"PopTorch {verdict} {name}. Only PopTorch and an IPU can tell {report.not_checked}.")


_SPOKEN = {"__bool__": "if or bool()", "__float__": "float()", "__int__": "int()", "__getitem__": "indexing"}
"""How a program calls methods of tensors that it does not call by their names."""


def _lines_of(finding: "Finding", programs: "Sequence[str]") -> List[Tuple[str, str]]:
    """Returns the labels and texts of a finding."""
    caller = _SPOKEN.get(finding.function, f"torch's {finding.function}")
    called = f", called by {caller}" if finding.function not in ("", finding.operation) else ""
    times = f", {finding.count} times" if finding.count > 1 else ""
    return [
        (f"{finding.verdict}: ", f"{finding.operation}{called}{times} ({' and '.join(programs)})"),
        ("  where: ", finding.where),
        ("  why: ", finding.reason),
        ("  do: ", finding.remedy),
    ]


def _print_wrapped(console: "Console", label: str, text: str) -> None:
    """Prints a label and a text in lines of at most 80 characters; words, such as paths, are not broken."""
    indent = " " * min(len(label), 9)
    options: Dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    for line in textwrap.wrap(label + message(text), 80, subsequent_indent=indent, drop_whitespace=True, **options):
        console.print(line)


def print_compilation(console: "Console", config: "Config", device: "Device", seconds: float, *, as_json: bool) -> None:
    """Prints the result of a compilation."""
    if as_json:
        print_json({**device.facts, "seconds": seconds})
    elif device.simulated:
        console.print("PopTorch's rules hold for this model and config (simulated: nothing was compiled)")
    else:
        console.print(f"compiled in {seconds:.0f} s into {config.pipeline.executable_cache}")


def print_throughput(
    console: "Console", config: "Config", device: "Device", found: "Throughput", *, as_json: bool
) -> None:
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


# ------------------------------------------------------------------------- convert, models and pack


def print_conversion(
    console: "Console", weights: "Weights", target: Path, to: str, *, push: Optional[str], as_json: bool
) -> None:
    """Prints the source and the target of a conversion, and the repository that it was uploaded to."""
    num_parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    if as_json:
        values = {"source": weights.source, "origin": weights.origin, "target": str(target), "to": to, "push": push}
        assumed = list(weights.metadata.assumed)
        print_json(dict(values, num_parameters=num_parameters, num_classes=weights.num_classes, assumed=assumed))
    else:
        console.print(
            f"{weights.source} ({weights.origin}, {counted(num_parameters, 'parameter')}, "
            f"{counted(weights.num_classes, 'class', 'classes')}) "
            f"written as {to} to {target}{f' and uploaded as {push}' if push else ''}"
        )


def print_models(rows: List[Dict[str, Any]], *, as_json: bool) -> None:
    """Prints the variants, one per line, and the figures that mmclassification prints for three of them."""
    from vit_ipu.model_cost import PRINTED_FORMULA

    if as_json:
        print_json({"models": rows})
        return
    print(
        f"{'variant':20} {'width':>5} {'depth':>5} {'heads':>5} {'pixels':>6} {'parameters':>12} {'GMACs':>8}   "
        "mmclassification prints"
    )
    for row in rows:
        printed = row.get("mmclassification")
        note = f"{printed['printed_parameters_m']:.2f} M, {printed['printed_flops_g']:.2f} G" if printed else ""
        shape = f"{row['variant']:20} {row['width']:5} {row['depth']:5} {row['num_heads']:5} {row['image_size']:6}"
        print(f"{shape} {row['parameters']:12,} {row['flops'] / 1e9:8.2f}   {note}".rstrip())
    print()
    for line in textwrap.wrap(f"What mmclassification prints, in every row: {PRINTED_FORMULA}.", 100):
        print(line)


def print_packed(console: "Console", target: Path, packed: "Dict[str, PackedSplit]", *, as_json: bool) -> None:
    """Prints the numbers of packed and of skipped images."""
    if as_json:
        print_json({"target": str(target), "splits": {name: asdict(split) for name, split in packed.items()}})
        return
    for name, split in packed.items():
        where = " (their paths are in index.json)" if split.skipped else ""
        console.print(
            f"{target / name}: {counted(split.samples, 'image')} in "
            f"{counted(split.shards, 'shard')} ({split.kept} kept), "
            f"{split.bytes / 1e6:.1f} MB, {len(split.skipped)} skipped{where}"
        )


def print_verified(console: "Console", target: Path, counts: Dict[str, int], *, as_json: bool) -> None:
    """Prints the number of images in shards that match their checksums."""
    if as_json:
        print_json({"target": str(target), "verified": counts})
        return
    for name, count in counts.items():
        console.print(f"{target / name}: {counted(count, 'image')} in shards that match their checksums")


def interrupted_pack(error: BaseException, *, verify: bool) -> str:
    """Returns how much of a pack is done and how to continue, without `--rescan` once the journal records it.

    An interrupted `verify` leaves nothing to continue from.
    """
    if verify:
        return f"interrupted before all shards were checked; start again with: {shlex.join(['vit-ipu', *sys.argv[1:]])}"
    done = str(error) or "and finished work is kept"
    arguments = [argument for argument in sys.argv[1:] if not (str(error) and argument == "--rescan")]
    return f"interrupted, {done}; continue with: {shlex.join(['vit-ipu', *arguments])}"

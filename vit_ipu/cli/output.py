"""What the commands print: text for people, or one JSON object."""

import json
import shlex
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

from vit_ipu.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends.contract import Device
    from vit_ipu.benchmark import Throughput
    from vit_ipu.config import Config
    from vit_ipu.data.packing.pack import PackedSplit
    from vit_ipu.evaluate import CheckpointEvaluation
    from vit_ipu.predict import Prediction
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import Summary
    from vit_ipu.weights.read import Weights


def print_json(value: Dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))


# ------------------------------------------------------------------------------------------- train


def print_run_header(console: "Console", config: "Config", device: "Device", folder: "RunFolder") -> None:
    """Prints what a run is about to do."""
    from vit_ipu.backends.build import describe_hardware
    from vit_ipu.pipeline import BatchPlan

    ipus = len(config.layers_per_ipu)
    compute = config.precision.resolve_compute(device.kind)
    console.print(f"{device}: {describe_hardware(device)}, {compute}")
    console.print(f"{BatchPlan.of(config).equation}, on {ipus} {'IPU' if ipus == 1 else 'IPUs'} each")
    console.print(f"run folder {folder.path}")


def print_summary(
    console: "Console", summary: "Summary", folder: "RunFolder", device: "Device", *, as_json: bool
) -> None:
    """Prints how a run ended, and how to continue one that was interrupted."""
    progress = summary.progress
    if as_json:
        print_json(_summary_values(summary, folder, device))
    elif summary.evaluation is None or summary.interrupted:
        console.print(
            f"interrupted at update {progress.update:,} of {summary.total_updates:,}; continue with: "
            f"{_command_to_resume(folder)}"
        )
    else:
        console.print(
            f"top-1 {summary.evaluation.top1:.2f} % after {progress.update:,} updates, {summary.seconds:.0f} s in "
            "this process"
        )
        console.print(f"report {folder.report}")


def _summary_values(summary: "Summary", folder: "RunFolder", device: "Device") -> Dict[str, Any]:
    values = asdict(summary.evaluation) if summary.evaluation is not None else {}
    return dict(
        values,
        run=str(folder.path),
        update=summary.progress.update,
        total_updates=summary.total_updates,
        samples=summary.progress.samples,
        seconds=summary.seconds,
        checkpoint=str(summary.checkpoint) if summary.checkpoint is not None else None,
        device=str(device),
        simulated=device.simulated,
    )


def _command_to_resume(folder: "RunFolder") -> str:
    """The command that was given, with what makes it a continuation."""
    arguments = ["vit-ipu", *sys.argv[1:]]
    if not any(argument == "--output" or argument.startswith("--output=") for argument in arguments):
        arguments += ["--output", str(folder.path)]
    return shlex.join(arguments if "--resume" in arguments else [*arguments, "--resume"])


# ------------------------------------------------------------------------------ evaluate and predict


def print_evaluation(console: "Console", found: "CheckpointEvaluation", device: "Device", *, as_json: bool) -> None:
    """Prints what an evaluation found."""
    evaluation = found.evaluation
    for skipped in found.skipped:
        console.print(f"skipped: {skipped}")
    if as_json:
        run = {"checkpoint": str(found.checkpoint), "device": str(device), "simulated": device.simulated}
        print_json(dict(asdict(evaluation), skipped=list(found.skipped), **run))
        return
    console.print(f"top-1 {evaluation.top1:.2f} %, top-5 {evaluation.top5:.2f} %, loss {evaluation.loss:.4f}")
    console.print(f"{evaluation.num_images:,} images, {found.checkpoint}")


def print_predictions(predictions: "List[Prediction]", unreadable: Dict[str, str], *, as_json: bool) -> None:
    """Prints classes with probabilities; `unreadable`: what is wrong with the images that have none, by path."""
    if as_json:
        rows = [
            {"image": p.path, "classes": [{"name": n, "probability": v} for n, v in p.classes]} for p in predictions
        ]
        print_json({"predictions": rows, "unreadable": unreadable})
        return
    for prediction in predictions:
        print(printable(prediction.path))
        for name, probability in prediction.classes:
            print(f"  {100 * probability:6.2f} %  {printable(name)}")


# ------------------------------------------------------------------------- plan, compile, benchmark


def print_plan(plan: Dict[str, Any], *, as_json: bool) -> None:
    """Prints where each unit goes, the arithmetic of batches, and what PopTorch would refuse."""
    from vit_ipu.pipeline import BatchPlan

    if as_json:
        print_json(plan)
        return
    batches = BatchPlan(**{field: plan[field] for field in BatchPlan.__dataclass_fields__})
    for ipu, units in enumerate(plan["placement"]):
        print(f"IPU {ipu}: {', '.join(units)}")
    print()
    print(f"{plan['num_ipus']} IPUs = {plan['ipus_per_replica']} a replica x {plan['replication_factor']} replicas")
    print(batches.equation)
    print(
        f"host step {plan['samples_per_step']:,} = global batch {plan['global_batch_size']:,} x device iterations "
        f"{plan['device_iterations']}"
    )
    print(
        f"{plan['stages']} stages in training, {plan['cycles_per_update']:,} cycles an update: ramp-up and ramp-down "
        f"leave an IPU at most {plan['utilisation_bound']:.1%}"
    )
    print(f"evaluation {plan['evaluation_samples_per_step']:,} images a call")
    for violation in plan["violations"]:
        print(f"PopTorch would refuse: {violation}")


def print_compilation(console: "Console", config: "Config", device: "Device", seconds: float, *, as_json: bool) -> None:
    """Prints what a compilation has shown."""
    if as_json:
        print_json({"device": str(device), "simulated": device.simulated, "seconds": seconds})
    elif device.simulated:
        console.print("PopTorch's rules hold for this model and config (simulated: nothing was compiled)")
    else:
        console.print(f"compiled in {seconds:.0f} s into {config.pipeline.executable_cache}")


def print_throughput(
    console: "Console", config: "Config", device: "Device", found: "Throughput", *, as_json: bool
) -> None:
    """Prints images per second; in JSON with config and environment, which make a record of it."""
    from vit_ipu.runs.environment import environment

    if as_json:
        print_json(dict(asdict(found), config=config.model_dump(mode="json"), **environment(config, device)))
        return
    word = "simulated" if device.simulated else "measured"
    fast, slow = found.quartiles
    console.print(
        f"{found.images_per_second:,.1f} images/s ({word}; quartiles {slow:,.1f} and {fast:,.1f} of "
        f"{len(found.seconds)} host steps of {found.samples_per_step:,} images)"
    )


# ------------------------------------------------------------------------- convert, models and pack


def print_conversion(console: "Console", weights: "Weights", target: Path, to: str, *, as_json: bool) -> None:
    """Prints what was converted."""
    num_parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    if as_json:
        values = {"source": weights.source, "origin": weights.origin, "target": str(target), "to": to}
        print_json(dict(values, num_parameters=num_parameters, num_classes=weights.num_classes))
    else:
        console.print(
            f"{weights.source} ({weights.origin}, {num_parameters:,} parameters, {weights.num_classes} classes) "
            f"written as {to} to {target}"
        )


def print_models(rows: List[Dict[str, Any]], *, as_json: bool) -> None:
    """Prints the variants, a line each, and what mmclassification prints of three of them."""
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
    for line in textwrap.wrap(f"What mmclassification prints, whatever the row: {PRINTED_FORMULA}.", 100):
        print(line)


def print_packed(console: "Console", target: Path, packed: "Dict[str, PackedSplit]", *, as_json: bool) -> None:
    """Prints what was packed, and what was left out."""
    if as_json:
        print_json({"target": str(target), "splits": {name: asdict(split) for name, split in packed.items()}})
        return
    for name, split in packed.items():
        where = " (their paths are in index.json)" if split.skipped else ""
        console.print(
            f"{target / name}: {split.samples:,} images in {split.shards} shards ({split.kept} kept), "
            f"{split.bytes / 1e6:.1f} MB, {len(split.skipped)} skipped{where}"
        )


def print_verified(console: "Console", target: Path, counts: Dict[str, int], *, as_json: bool) -> None:
    """Prints how many images were found as they were written."""
    if as_json:
        print_json({"target": str(target), "verified": counts})
        return
    for name, count in counts.items():
        console.print(f"{target / name}: {count:,} images in shards as they were written")


def interrupted_pack(error: BaseException) -> str:
    """Says how much of a pack is done, and how to continue; `--rescan` is dropped once the journal records it."""
    done = str(error) or "and what is done is kept"
    arguments = [argument for argument in sys.argv[1:] if not (str(error) and argument == "--rescan")]
    return f"interrupted, {done}; continue with: {shlex.join(['vit-ipu', *arguments])}"

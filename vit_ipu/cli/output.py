"""What the command line prints: text, JSON, and errors as one line."""

import errno
import json
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.backends import Device
    from vit_ipu.config import Config
    from vit_ipu.data.packing.pack import PackedSplit
    from vit_ipu.predict import Prediction
    from vit_ipu.runs.folder import RunFolder
    from vit_ipu.train import Summary

_USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, or that of the copy which newer typers carry
_USERS_ERRNO = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_LONGEST = 400


def exit_code(error: Exception) -> int:
    """2 for a mistake of the user's, 1 for a run that failed."""
    from vit_ipu.config import UserError

    users = isinstance(error, OSError) and error.errno in _USERS_ERRNO
    return 2 if users or isinstance(error, (UserError, _USAGE_ERROR)) else 1


def one_line(error: Exception) -> str:
    """What is wrong; with the kind of exception if it is not one of those that are made to be read."""
    from vit_ipu.config import RunFailed, UserError

    if isinstance(error, OSError) and error.strerror and not isinstance(error, UserError):
        return "{}{}".format(f"{error.filename}: " if error.filename else "", error.strerror)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if isinstance(error, (UserError, RunFailed, _USAGE_ERROR)):
        return " ".join(text.split())
    if "Traceback" in text:  # torch puts a worker's whole traceback into the message
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split())
    shortened = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return "{}: {} (--debug shows where)".format(type(error).__name__, shortened or "no message")


def printable(text: str) -> str:
    """Text of strangers, such as a class name, without what would move the cursor or end the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def make_console(as_json: bool) -> "Console":
    """Text for people, as it is, without markup; on stderr where stdout is for a program."""
    from rich.console import Console

    stream: Any = _Unbroken(sys.stderr if as_json else sys.stdout)
    return Console(file=stream, soft_wrap=True, highlight=False, markup=False)


class _Unbroken:
    """A stream that takes any text, and goes on when nobody reads it: a run matters more than what it shows."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with suppress(BrokenPipeError):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_json(value: Dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, allow_nan=False))


def introduce(console: "Console", config: "Config", device: "Device", folder: "RunFolder") -> None:
    """What a run is about to do."""
    from vit_ipu.backends import describe_hardware
    from vit_ipu.pipeline import resolve_compute

    pipeline, ipus = config.pipeline, len(config.layers_per_ipu)
    compute = resolve_compute(config.precision.compute, device.kind)
    console.print(f"{device}: {describe_hardware(device)}, {compute}")
    console.print(
        "global batch {:,} = micro-batch {} x accumulation {} x replicas {}, on {} IPU{} each".format(
            pipeline.global_batch_size,
            pipeline.micro_batch_size,
            pipeline.gradient_accumulation,
            pipeline.replication_factor,
            ipus,
            "" if ipus == 1 else "s",
        )
    )
    console.print(f"run folder {folder.path}")


def summary_values(summary: "Summary", folder: "RunFolder", device: "Device") -> Dict[str, Any]:
    """How a run ended, as values for JSON."""
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


def print_summary(console: "Console", summary: "Summary", folder: "RunFolder") -> None:
    """How a run ended, as text."""
    if summary.evaluation is None or summary.interrupted:
        console.print(
            f"interrupted at update {summary.progress.update:,} of {summary.total_updates:,}; go on with: "
            f"{_command_to_resume(folder)}"
        )
        return
    console.print(
        f"top-1 {summary.evaluation.top1:.2f} % after {summary.progress.update:,} updates, {summary.seconds:.0f} s in "
        "this process"
    )
    console.print(f"report {folder.report}")


def print_predictions(predictions: "List[Prediction]", unreadable: Dict[str, str], *, as_json: bool) -> None:
    """Classes with probabilities; `unreadable`: what is wrong with the images that have none, by path."""
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


def print_packed(console: "Console", target: Path, packed: "Dict[str, PackedSplit]", *, as_json: bool) -> None:
    """What was packed, and what was left out."""
    if as_json:
        print_json({"target": str(target), "splits": {name: asdict(split) for name, split in packed.items()}})
        return
    for name, split in packed.items():
        console.print(
            "{}: {:,} images in {} shards ({} kept), {:.1f} MB, {} skipped{}".format(
                target / name,
                split.samples,
                split.shards,
                split.kept,
                split.bytes / 1e6,
                len(split.skipped),
                " (their paths are in index.json)" if split.skipped else "",
            )
        )


def print_verified(console: "Console", target: Path, counts: Dict[str, int], *, as_json: bool) -> None:
    """What is right."""
    if as_json:
        print_json({"target": str(target), "verified": counts})
        return
    for name, count in counts.items():
        console.print(f"{target / name}: {count:,} images in shards as they were written")


def interrupted_pack(error: BaseException) -> str:
    """How far it came, and how to go on; that all is packed anew is noted once packing has begun."""
    words = [word for word in sys.argv[1:] if not (str(error) and word == "--rescan")]
    done = str(error) or "and what is done is kept"
    return "interrupted, {}; go on with: {}".format(done, shlex.join(["vit-ipu", *words]))


def _command_to_resume(folder: "RunFolder") -> str:
    """The command that was given, with what makes it a continuation."""
    words = ["vit-ipu", *sys.argv[1:]]
    if not any(word == "--output" or word.startswith("--output=") for word in words):
        words += ["--output", str(folder.path)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])

"""Output of the commands that write other files: convert, pack."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional

from vit_ipu.cli.json_output import print_json
from vit_ipu.text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from vit_ipu.data.packing.pack import PackedSplit
    from vit_ipu.weights.read import Weights


def print_conversion(
    console: Console, weights: Weights, target: Path, to: str, *, push: Optional[str], as_json: bool
) -> None:
    """Prints the source and the target of a conversion, and the repository that it was uploaded to."""
    num_parameters = sum(tensor.numel() for tensor in weights.tensors.values())
    if as_json:
        values: Dict[str, Any] = {"source": weights.source, "origin": weights.origin, "target": str(target), "to": to}
        values.update({"push": push}, **({"load": _code_that_loads(weights, target)} if to == "timm" else {}))
        assumed = list(weights.metadata.assumed)
        print_json(dict(values, num_parameters=num_parameters, num_classes=weights.num_classes, assumed=assumed))
    else:
        console.print(
            f"{weights.source} ({weights.origin}, {counted(num_parameters, 'parameter')}, "
            f"{counted(weights.num_classes, 'class', 'classes')}) "
            f"written as {to} to {target}{f' and uploaded as {push}' if push else ''}"
        )
        if to == "timm":
            console.print(f"load it with: {_code_that_loads(weights, target)}")


def _code_that_loads(weights: Weights, target: Path) -> str:
    """Returns the Python code that loads an export for timm."""
    from vit_ipu.weights.describe import model_config
    from vit_ipu.weights.timm_code import timm_call

    place = {"folder": str(target)} if target.is_dir() else {"file": str(target)}
    return timm_call(model_config(weights, headless=True), weights.num_classes, **place)


def print_packed(console: Console, target: Path, packed: Dict[str, PackedSplit], *, as_json: bool) -> None:
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


def print_verified(console: Console, target: Path, counts: Dict[str, int], *, as_json: bool) -> None:
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

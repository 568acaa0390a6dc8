"""Measures a whole run of `vit-ipu train` on packed images, evaluations and checkpoints included.

    python benchmarks/whole_run.py FOLDER --device cuda

FOLDER has train/CLASS/ and val/CLASS/ (`photographs.write_folder` creates one); it is packed first. Two runs differ
only in their length, so that the difference of their times holds no start and no compiling. The rate of the
further images of the longer run is compared with that of `vit-ipu benchmark`, which trains on one batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Tuple

from command import run_command
from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config import Config
from vit_ipu.config_file import dump_config, parse_config

Summary = Dict[str, Any]
"""What a command prints as JSON."""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cli("pack", str(arguments.folder), str(folder / "packed"), "--short-side", "256")
        configs = {length: config_for(arguments, folder / "packed", length) for length in ("short", "long")}
        step, runs = measure(configs, folder, arguments.device)
    report(arguments, configs["long"], step, runs)


def measure(configs: Dict[str, Config], folder: Path, device: str) -> Tuple[Summary, Dict[str, Summary]]:
    """Returns what the program prints of the rate of a step, and of a complete run of each config."""
    for length, config in configs.items():
        (folder / f"{length}.yaml").write_text(dump_config(config), encoding="utf-8")
    step = cli("benchmark", str(folder / "short.yaml"), "--device", device)
    runs = {
        length: cli("train", str(folder / f"{length}.yaml"), "--device", device, "--output", str(folder / length))
        for length in configs
    }
    return step, runs


def report(arguments: argparse.Namespace, config: Config, step: Summary, runs: Dict[str, Summary]) -> None:
    """Writes the record: the rate of the longer run's further updates, and its share of a step's rate."""
    seconds = runs["long"]["seconds"] - runs["short"]["seconds"]
    rate = arguments.interval * arguments.intervals * arguments.batch / seconds
    share = rate / step["images_per_second"]
    where = resolve_device(arguments.device)
    write_record(
        "whole-run",
        f"A whole run of {arguments.variant} on packed images on {where}",
        where,
        config,
        [
            f"The longer run has {arguments.intervals} times {arguments.interval} updates of {arguments.batch} images "
            "more, with an evaluation and a checkpoint after each; an epoch of ImageNet-1k has 2,502 updates of 512. "
            "`vit-ipu benchmark` repeats one batch.",
        ],
        (
            ("what", "images/s", "share"),
            [
                ["`vit-ipu benchmark`", f"{step['images_per_second']:,.0f}", ""],
                ["`vit-ipu train`, evaluations and checkpoints included", f"{rate:,.0f}", f"{100 * share:.1f} %"],
            ],
        ),
        {
            "benchmark": {
                key: step[key] for key in ("images_per_second", "quartiles", "parts", "share_of_matrix_rate")
            },
            "seconds": {length: run["seconds"] for length, run in runs.items()},
            "images_per_second": rate,
            "share": share,
        },
    )


def config_for(arguments: argparse.Namespace, packed: Path, length: str) -> Config:
    intervals = 1 if length == "short" else 1 + arguments.intervals
    return parse_config(
        {
            "model": {"variant": arguments.variant, "num_classes": 10},
            "data": {"source": "shards", "path": str(packed), "num_workers": arguments.workers, "horizontal_flip": 0.5},
            "pipeline": {"global_batch_size": arguments.batch, "micro_batch_size": min(arguments.batch, 64)},
            "optim": {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05},
            "run": {
                "updates": arguments.interval * intervals,
                "evaluate_every": arguments.interval,
                "checkpoint_every": arguments.interval,
            },
        }
    )


def cli(*arguments: str) -> Summary:
    """Runs the program and returns what it prints as JSON."""
    command = [sys.executable, "-m", "vit_ipu", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    found: Summary = json.loads(done.stdout)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda", "ipu", "ipu-sim"])
    parser.add_argument("--variant", default="vit_base_patch16")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--interval", type=int, default=250, help="updates between evaluations")
    parser.add_argument("--intervals", type=int, default=2, help="intervals by which the longer run is longer")
    parser.add_argument("--workers", type=int, default=14)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

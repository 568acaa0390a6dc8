"""Measures the quickstart's top-1 and time over several seeds: python benchmarks/quickstart.py --device ipu-sim."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config_file import load_config


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    runs = [train(arguments.device, seed) for seed in arguments.seeds]
    tops, seconds = ([run[key] for run in runs] for key in ("top1", "seconds"))
    rows = [
        [str(seed), f"{run['top1']:.2f}", f"{run['top5']:.2f}", f"{run['seconds']:.0f}"]
        for seed, run in zip(arguments.seeds, runs)
    ]
    write_record(
        "quickstart",
        f"The quickstart on {device}",
        device,
        load_config("quickstart"),
        [
            f"{len(runs)} seeds, one run each, no burn-in: top-1 {min(tops):.2f} to {max(tops):.2f} %, median "
            f"{statistics.median(tops):.2f} %; training and evaluations {min(seconds):.0f} to {max(seconds):.0f} s."
        ],
        (("seed", "top-1 (%)", "top-5 (%)", "seconds"), rows),
        {"top1": tops, "top5": [run["top5"] for run in runs], "seconds": seconds},
    )


def train(device: str, seed: int) -> Dict[str, Any]:
    """Trains in a separate process and folder, and returns the summary."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "run")
        command: List[str] = [sys.executable, "-m", "vit_ipu", "train", "quickstart", "--device", device, "--json"]
        command += ["--output", output, "--set", f"run.seed={seed}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary: Dict[str, Any] = json.loads(done.stdout)
    return summary


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="ipu-sim")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    return parser.parse_args()


if __name__ == "__main__":
    main()

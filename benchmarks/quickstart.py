"""Measures the quickstart over several seeds, fine-tuned and from scratch: python benchmarks/quickstart.py."""

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
from vit_ipu.runs.metrics import read_metrics

SCRATCH = "model.init=null"


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    pairs = [(train(arguments.device, seed), train(arguments.device, seed, SCRATCH)) for seed in arguments.seeds]
    rows = [
        [
            str(seed),
            f"{tuned['before']:.2f}",
            f"{tuned['top1']:.2f}",
            f"{tuned['top5']:.2f}",
            f"{scratch['top1']:.2f}",
            f"{tuned['seconds']:.0f}",
            f"{scratch['seconds']:.0f}",
        ]
        for seed, (tuned, scratch) in zip(arguments.seeds, pairs)
    ]
    tuned, scratch = ([pair[index]["top1"] for pair in pairs] for index in (0, 1))
    seconds = [run["seconds"] for pair in pairs for run in pair]
    head = ("seed", "before (%)", "fine-tuned (%)", "its top-5 (%)", "from scratch (%)", "seconds", "its seconds")
    write_record(
        "quickstart",
        f"The quickstart on {device}",
        device,
        load_config("quickstart"),
        [
            f"{len(pairs)} seeds, one run each, no burn-in. Top-1 fine-tuned {spread(tuned)}; from scratch, with the "
            f"same config and model.init null, {spread(scratch)}; training and evaluations {min(seconds):.0f} to "
            f"{max(seconds):.0f} s a run."
        ],
        (head, rows),
        {"top1": tuned, "top1_from_scratch": scratch, "seconds": seconds},
    )


def spread(tops: List[float]) -> str:
    return f"{min(tops):.2f} to {max(tops):.2f} %, mean {statistics.mean(tops):.2f} %"


def train(device: str, seed: int, *changes: str) -> Dict[str, Any]:
    """Trains in a separate process and folder; returns the summary, and top-1 before training as `before`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command: List[str] = [sys.executable, "-m", "vit_ipu", "train", "quickstart", "--device", device, "--json"]
        command += ["--output", str(output)]
        for change in (f"run.seed={seed}", *changes):
            command += ["--set", change]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        evaluations = [line for line in read_metrics(output / "metrics.jsonl") if "top1" in line]
    return dict(json.loads(done.stdout), before=evaluations[0]["top1"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="ipu-sim")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    return parser.parse_args()


if __name__ == "__main__":
    main()

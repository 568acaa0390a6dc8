"""Measures the quickstart over several seeds, fine-tuned and from scratch, beside a plain loop with timm's ViT.

python benchmarks/quickstart.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

from command import run_command
from peer_finetune import finetune
from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config_file import load_config
from vit_ipu.runs.metrics import read_metrics

SCRATCH = "model.init=null"


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    runs = [measure(arguments.device, seed) for seed in arguments.seeds]
    tops = {name: [run[name]["top1"] for run in runs] for name in ("tuned", "scratch", "timm tuned", "timm scratch")}
    seconds = [run[name]["seconds"] for run in runs for name in ("tuned", "scratch")]
    head = ("seed", "before (%)", "fine-tuned (%)", "its top-5 (%)", "from scratch (%)", "seconds", "its seconds")
    write_record(
        "quickstart",
        f"The quickstart on {device}",
        device,
        load_config("quickstart"),
        [
            f"{len(runs)} seeds, one run each, no burn-in. Top-1 fine-tuned {spread(tops['tuned'])}; from scratch, "
            f"with the same config and model.init null, {spread(tops['scratch'])}; training and evaluations "
            f"{min(seconds):.0f} to {max(seconds):.0f} s a run.",
            "A plain training loop with timm's ViT on the CPU, with the same recipe, images and seeds "
            f"(benchmarks/peer_finetune.py): fine-tuned from the same weights {spread(tops['timm tuned'])}; from "
            f"scratch {spread(tops['timm scratch'])}.",
        ],
        ((*head, "timm fine-tuned (%)", "timm from scratch (%)"), [row(*pair) for pair in zip(arguments.seeds, runs)]),
        {"top1": tops["tuned"], "top1_from_scratch": tops["scratch"], "seconds": seconds},
    )


def measure(device: str, seed: int) -> Dict[str, Dict[str, Any]]:
    """Returns the summaries of four runs: ours and timm's, from the package's weights and from scratch."""
    found = {}
    for name, changes in (("tuned", []), ("scratch", [SCRATCH])):
        found[name] = train(device, seed, *changes)
        found[f"timm {name}"] = finetune("timm", load_config("quickstart", changes), "cpu", seed)
    return found


def row(seed: int, run: Dict[str, Dict[str, Any]]) -> List[str]:
    tuned, scratch = run["tuned"], run["scratch"]
    tops = [tuned["before"], tuned["top1"], tuned["top5"], scratch["top1"]]
    seconds = [tuned["seconds"], scratch["seconds"]]
    peers = [run["timm tuned"]["top1"], run["timm scratch"]["top1"]]
    return [
        str(seed),
        *(f"{value:.2f}" for value in tops),
        *(f"{value:.0f}" for value in seconds),
        *(f"{value:.2f}" for value in peers),
    ]


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
    run_command(main)

"""Measures what simulating costs: a training step of ViT-S at 224 px over the simulator and natively, on one device.

Both run the same micro-batches eagerly in float32 in one process and take turns; the ratio of times is the result.
The simulator runs in its exact mode, over a pipeline of four IPUs.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from record import write_record
from training_step import backend_step, step_config, take_turns

from vit_ipu.backends.build import resolve_device

BATCHES = {"cpu": (32, 4), "cuda": (512, 64)}
"""Global batch size and micro-batch size by device."""


def main() -> None:
    arguments = _arguments()
    simulated = {"cpu": "ipu-sim", "cuda": "ipu-sim:cuda"}[arguments.device]
    eager = {"compute": "float32", "torch_compile": "never"}
    config = step_config("vit_small_patch16", *BATCHES[arguments.device], attention="explicit", precision=eager)
    steps = {"native": backend_step(config, arguments.device), "simulated": backend_step(config, simulated)}
    times = take_turns(steps, config, runs=arguments.runs, burn_in=arguments.burn_in)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["simulated"] / medians["native"]
    rows = [[name, f"{medians[name]:.4f}", f"{min(found):.4f} to {max(found):.4f}"] for name, found in times.items()]
    write_record(
        "simulator-overhead",
        f"What simulating costs on {arguments.device}: {ratio:.3f} x the native time",
        resolve_device(simulated),
        config,
        [f"{arguments.runs} timed updates of each backend, in turns, after {arguments.burn_in} untimed updates."],
        (("backend", "seconds per update (median)", "spread"), rows),
        {"ratio": ratio, "seconds": times},
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=list(BATCHES))
    parser.add_argument("--runs", type=int, default=10, help="updates to time")
    parser.add_argument("--burn-in", type=int, default=3, help="untimed updates first")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Compares the float16 recipe of the IPU configs with float32, on the quickstart with paired seeds, over the simulator.

Both train on the same images in the same order from the same weights. float32 runs in the simulator's exact mode.
float16 runs with the IPU's number formats (`--numerics ipu`): float16 weights, activations, partials, accumulated
gradients and first moment, stochastic rounding, and the loss scale of the recipe. Two badly chosen loss scales must
visibly fail.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Tuple

from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config_file import load_config

LOSS_SCALE = 256.0
"""The loss scale of mmcls_vit_base_patch16_finetune_224_ipu."""
BAD_LOSS_SCALES = (65536.0, 2.0**-14)
RECIPE = {
    "compute": "float16",
    "partials": "float16",
    "stochastic_rounding": "true",
    "accumulation": "float16",
    "first_moment": "float16",
}
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Student's t quantile at 97.5 %, by the number of pairs."""

Run = Tuple[str, int]
"""A run: "float32" or the loss scale of a float16 run, and the seed."""


def main() -> None:
    arguments = _arguments()
    runs: List[Run] = [(str(LOSS_SCALE), seed) for seed in arguments.seeds]
    runs += [(str(scale), arguments.seeds[0]) for scale in BAD_LOSS_SCALES]
    runs += [("float32", seed) for seed in arguments.seeds]  # the short runs last, beside the long ones
    arguments.folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = dict(zip(runs, pool.map(lambda run: train(run, arguments, threads), runs)))
    tops = {run: summary["top1"] for run, summary in found.items()}
    differences = [tops[str(LOSS_SCALE), seed] - tops["float32", seed] for seed in arguments.seeds]
    mean, half = interval(differences)
    rows = [
        [name if name == "float32" else "float16, loss scale " + name, str(seed), _top1(top1), _overflows(found[run])]
        for run, top1 in tops.items()
        for name, seed in (run,)
    ]
    device = resolve_device("ipu-sim", numerics="ipu")
    write_record(
        "float16-recipe",
        "The float16 recipe against float32 on the quickstart, simulated"
        + (f", shortened to {arguments.updates} updates" if arguments.updates else ""),
        device,
        load_config("quickstart"),
        [
            f"float16 minus float32 over {len(differences)} paired seeds: mean {mean:+.2f} points of top-1, 95 % "
            f"interval {mean - half:+.2f} to {mean + half:+.2f}.",
            f"Recipe: {', '.join(f'{key} {value}' for key, value in RECIPE.items())}, loss scale {LOSS_SCALE:g}. "
            f"{arguments.jobs} runs at a time.",
        ],
        (("precision", "seed", "top-1 (%)", "overflows"), rows),
        {
            "differences": differences,
            "mean": mean,
            "interval": [mean - half, mean + half],
            "top1": _json(tops),
            "overflows": {f"{name} seed {seed}": of.get("overflows") for (name, seed), of in found.items()},
        },
    )


def train(run: Run, arguments: argparse.Namespace, threads: int) -> Dict[str, Any]:
    """Trains in a separate process and returns the summary, with a top-1 of NaN if training failed.

    Continues a run that was interrupted, and keeps one that is finished.
    """
    name, seed = run
    folder = arguments.folder / f"{name}_seed_{seed}"
    done = arguments.folder / f"{name}_seed_{seed}.json"
    if not done.exists():
        settings = dict(_settings(name), **{"run.seed": str(seed), "run.checkpoint_every": "140"})
        if arguments.updates:
            settings.update({"run.updates": str(arguments.updates), "optim.warmup_updates": "0"})
        numerics = "exact" if name == "float32" else "ipu"
        command = [sys.executable, "-m", "vit_ipu", "train", "quickstart", "--device", "ipu-sim"]
        command += ["--numerics", numerics, "--json", "--output", str(folder)]
        command += ["--resume"] if (folder / "checkpoints").is_dir() else []
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        if process.returncode != 0:
            print(f"{name} seed {seed} failed: {process.stderr.strip()[-300:]}", file=sys.stderr)
        done.write_text(process.stdout if process.returncode == 0 else json.dumps({"top1": None}))
    summary: Dict[str, Any] = json.loads(done.read_text())
    if summary["top1"] is None:
        summary["top1"] = float("nan")
    print(f"{name} seed {seed}: top-1 {summary['top1']:.2f} %", file=sys.stderr)
    return summary


def _settings(name: str) -> Dict[str, str]:
    """Returns the settings that a run changes in the quickstart's config."""
    if name == "float32":
        return {}
    recipe = {"precision." + key: value for key, value in RECIPE.items()}
    return dict(recipe, **{"precision.loss_scale": name})


def interval(differences: List[float]) -> Tuple[float, float]:
    """Returns the mean, and half the width of its 95 % interval by Student's t."""
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), T_QUANTILE[len(differences)] * spread


def _top1(value: float) -> str:
    return "failed" if value != value else f"{value:.2f}"


def _overflows(summary: Dict[str, Any]) -> str:
    """Returns the number of clipped float16 values; nothing for a float32 run, or one that failed."""
    return "" if summary.get("overflows") is None else f"{summary['overflows']:,}"


def _json(tops: Dict[Run, float]) -> Dict[str, Any]:
    return {f"{name} seed {seed}": None if top1 != top1 else top1 for (name, seed), top1 in tops.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/float16"), help="folder of the runs; finished runs are kept"
    )
    parser.add_argument(
        "--updates", type=int, help="updates of each run, to try the benchmark out with fewer than the quickstart's"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Compares the float16 recipe of the IPU configs with float32, on the quickstart with paired seeds, over the simulator.

Both train on the same images in the same order from the same weights. float32 runs in the simulator's exact mode.
float16 runs with the IPU's number formats (`--numerics ipu`): float16 weights, activations, partials, accumulated
gradients and first moment, stochastic rounding, and the loss scale of the recipe. Two badly chosen loss scales must
visibly fail.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Dict, List

from command import run_command
from record import write_record
from training_runs import Arm, Summary, interval, top1_of, train_all

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


def main() -> None:
    arguments = _arguments()
    options = {"run.checkpoint_every": "140"}
    if arguments.updates:
        options.update({"run.updates": str(arguments.updates), "optim.warmup_updates": "0"})
    recipe, exact, *bad = arms(options)
    jobs = arguments.jobs
    found = train_all([recipe, exact], arguments.seeds, arguments.folder, jobs=jobs)
    found.update(train_all(bad, arguments.seeds[:1], arguments.folder, jobs=jobs))
    differences = [a["top1"] - b["top1"] for a, b in zip(found[recipe.name], found[exact.name])]
    report(arguments, found, differences)


def arms(options: Dict[str, str]) -> List[Arm]:
    """Returns the recipe, float32, and the recipe with loss scales that do not work."""
    return [
        Arm(name, "quickstart", "ipu-sim", numerics, dict(options, **settings))
        for name, numerics, settings in (
            (f"float16, loss scale {LOSS_SCALE:g}", "ipu", float16(LOSS_SCALE)),
            ("float32", "exact", {}),
            *((f"float16, loss scale {scale:g}", "ipu", float16(scale)) for scale in BAD_LOSS_SCALES),
        )
    ]


def report(arguments: argparse.Namespace, found: Dict[str, List[Summary]], differences: List[float]) -> None:
    """Writes the record; `differences` are those of the recipe's top-1 to float32's, of each seed."""
    mean, half = interval(differences)
    runs = [(name, seed, summary) for name in found for seed, summary in zip(arguments.seeds, found[name])]
    rows: List[List[str]] = [[name, str(seed), top1_of(run), _overflows(run)] for name, seed, run in runs]
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
            "top1": {f"{name} seed {seed}": _top1(run) for name, seed, run in runs},
            "overflows": {f"{name} seed {seed}": run.get("overflows") for name, seed, run in runs},
        },
    )


def float16(loss_scale: float) -> Dict[str, str]:
    """Returns the settings of the recipe, with a loss scale."""
    recipe = {"precision." + key: value for key, value in RECIPE.items()}
    return dict(recipe, **{"precision.loss_scale": f"{loss_scale:g}"})


def _top1(summary: Summary) -> Any:
    return None if summary["top1"] != summary["top1"] else summary["top1"]


def _overflows(summary: Summary) -> str:
    """Returns the number of clipped float16 values; nothing for a float32 run, or one that failed."""
    return "" if summary.get("overflows") is None else f"{summary['overflows']:,}"


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
    run_command(main)

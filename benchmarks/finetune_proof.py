"""Compares a fine-tune in the IPU recipe's arithmetic with float32, from pretrained weights, on paired seeds.

    python benchmarks/finetune_proof.py --device cuda --seeds 42 43 44 45 46

Both start from the same weights and see the same images in the same order. The IPU's arithmetic is simulated (float16
weights, activations, partials, accumulated gradients and velocity, stochastic rounding, loss scale). It "holds" the
accuracy only if the lower end of the 95 % interval of the difference is above -0.3 points of top-1. A loss scale that
is chosen badly must fail, and random weights must be worse. Peers are timm and transformers, trained by loops of their
own.

--rates chooses the learning rate first: float32 is trained with each on nine tenths of the training images, and the
rate with the best top-1 on the other tenth is that of all arms. Test images decide nothing.

Finished runs are kept in --folder, so that the arms may be trained one after the other (--arms), or continued after an
interruption. The record is written from the arms that are asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import matplotlib.pyplot as plt
import numpy as np
import peer_finetune
from command import run_command
from record import picture_path, write_record
from training_runs import Arm, Summary, commits_of, interval, top1_of, train_all

from vit_ipu.backends.build import resolve_device
from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.errors import CheckpointError
from vit_ipu.text import counted
from vit_ipu.weights.fetch import locate

CONFIG = "vit_small_patch14_finetune_fashion_mnist_ipu"
FLOAT32 = {
    "precision.compute": "float32",
    "precision.partials": "float32",
    "precision.stochastic_rounding": "false",
    "precision.loss_scale": "1",
    "precision.accumulation": "float32",
    "precision.first_moment": "float32",
}
BAD_LOSS_SCALE = str(2.0**-14)  # most gradients become 0 in float16
MARGIN = -0.3
"""Points of top-1 that the IPU recipe may lose."""
EXACT, RECIPE, UNROUNDED = "float32", "IPU recipe", "IPU recipe, no stochastic rounding"
CONTROLS = ("IPU recipe, bad loss scale", "float32, random weights")
"""Arms that must be worse, else the comparison could not tell a bad recipe from a good one."""
SMOOTHED = 20
"""Updates that a point of a loss curve is the mean of."""
FAR = 3.0
"""Points of top-1 below float32 from which an arm is not drawn to scale."""
RATE, SEED = "optim.learning_rate", 42
"""The setting that is chosen on held-out training images, and the seed of the runs that choose it."""


def arms_for(config: str, device: str, options: Dict[str, str]) -> List[Arm]:
    """Returns all ways to train that are compared, on a GPU or a CPU."""
    simulated = "ipu-sim" if device == "cpu" else f"ipu-sim:{device}"

    def arm(name: str, where: str, numerics: Optional[str], *settings: Dict[str, str]) -> Arm:
        merged = dict(options)
        for changed in settings:
            merged.update(changed)
        return Arm(name, config, where, numerics, merged)

    peers = [Arm(peer, config, device, None, dict(options), peer) for peer in peer_finetune.PEERS]
    return [
        arm(EXACT, device, None, FLOAT32),
        arm("bfloat16", device, None, FLOAT32, {"precision.compute": "bfloat16"}),
        arm(RECIPE, simulated, "ipu"),
        arm(UNROUNDED, simulated, "ipu", {"precision.stochastic_rounding": "false"}),
        arm("simulated float32", simulated, "exact", FLOAT32),
        arm(CONTROLS[0], simulated, "ipu", {"precision.loss_scale": BAD_LOSS_SCALE}),
        arm(CONTROLS[1], device, None, FLOAT32, {"model.init": "null"}),
        *peers,
    ]


def main() -> None:
    arguments = _arguments()
    require_weights(load_config(arguments.config, arguments.set))
    options = dict(setting.split("=", 1) for setting in arguments.set)
    chosen_by: List[str] = []
    if arguments.rates:
        tops = validated(arguments, options)
        if not tops:
            sys.exit(f"{arguments.folder} has no run with one of the rates: train them with --jobs 1 or more")
        if max(tops.values()) == -math.inf:
            sys.exit("training diverged with every rate of --rates: add smaller ones")
        options[RATE] = max(tops, key=lambda rate: tops[rate])
        chosen_by.append(
            f"Learning rate {options[RATE]}: with {EXACT} and seed {SEED}, the best of "
            f"{', '.join(f'{rate} ({text_of_top1(top)})' for rate, top in tops.items())}, trained on nine tenths of "
            "the training images and measured on the other tenth."
        )
    arms = arms_for(arguments.config, arguments.device, options)
    chosen = [arm for arm in arms if not arguments.arms or arm.name in arguments.arms]
    found = train_all(chosen, arguments.seeds, arguments.folder, jobs=arguments.jobs)
    for name, runs in found.items():
        print(name, *(top1_of(run) for run in runs))
    if EXACT not in found:
        return
    curves = picture_path(f"finetune-proof-{arguments.name}", arguments.device)
    draw(found, curves)
    config = load_config(arguments.config, [f"{key}={value}" for key, value in options.items()])
    write_record(
        f"finetune-proof-{arguments.name}",
        f"Fine-tuning pretrained weights on {arguments.name}: the IPU recipe against float32",
        resolve_device("ipu-sim" if arguments.device == "cpu" else f"ipu-sim:{arguments.device}", numerics="ipu"),
        config,
        [
            f"![loss and top-1]({curves.name})",
            *chosen_by,
            *verdicts(found),
            f"Runs of commit {' and '.join(commits_of(chain(*found.values()))) or 'unknown'}. Seeds "
            f"from {min(arguments.seeds)} on, several runs at a time on each device. Images/s and seconds are "
            "those of the complete run, with compiling and evaluations. IPU arithmetic is simulated.",
        ],
        (("arm", "top-1 (%)", "mean", "deviation", "top-5 (%)", "images/s", "seconds"), rows_of(found)),
        {"top1": {name: {run["seed"]: none_if_failed(run) for run in runs} for name, runs in found.items()}},
    )


def require_weights(config: Config) -> None:
    """Raises CheckpointError if the pretrained weights are not there, before anything is trained."""
    if config.model.init is None:
        return
    try:
        locate(config.model.init)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; docs/results.md says how to make the weights") from None


def validated(arguments: argparse.Namespace, options: Dict[str, str]) -> Dict[str, float]:
    """Returns the top-1 of float32 with each learning rate, in per cent, on held-out training images."""
    arms = [
        replace(
            arms_for(arguments.config, arguments.device, {**options, "data.holdout": "0.1", RATE: rate})[0], name=rate
        )
        for rate in arguments.rates
    ]
    found = train_all(arms, [SEED], arguments.folder / "rates", jobs=arguments.jobs)
    return {rate: -math.inf if math.isnan(runs[0]["top1"]) else runs[0]["top1"] for rate, runs in found.items()}


def text_of_top1(top: float) -> str:
    """Returns a top-1 in per cent as text; that of a run that diverged is -inf, as `validated` has it."""
    return "diverged" if top == -math.inf else f"{top:.2f} %"


def verdicts(found: Dict[str, List[Summary]]) -> List[str]:
    """Returns a sentence on each arm's difference to float32, and one on stochastic rounding, over common seeds."""
    sentences = [verdict(name, EXACT, found) for name in found if name != EXACT]
    if RECIPE in found and UNROUNDED in found:
        sentences.append(verdict(RECIPE, UNROUNDED, found))
    return sentences


def verdict(name: str, base: str, found: Dict[str, List[Summary]]) -> str:
    """Returns the difference of two arms in words, and what it shows."""
    of_base = {run["seed"]: run["top1"] for run in found[base]}
    pairs = {run["seed"]: (run["top1"], of_base[run["seed"]]) for run in found[name] if run["seed"] in of_base}
    start = f"{name} minus {base}"
    for arm, place in ((base, 1), (name, 0)):
        failed = [seed for seed, tops in pairs.items() if math.isnan(tops[place])]
        if failed:
            return f"{start}: nothing is shown, because {arm} diverged with seed {' and '.join(map(str, failed))}."
    differences = [top - other for top, other in pairs.values()]
    if len(differences) < 2:
        return f"{start}: nothing is shown; they have {counted(len(differences), 'seed')} in common."
    listed = " and ".join(f"{difference:+.2f}" for difference in differences)
    sentence = f"{start}, 2 seeds, too few for an interval: {listed} points of top-1."
    low, high = -math.inf, math.inf
    if len(differences) > 2:
        mean, half = interval(differences)
        low, high = mean - half, mean + half
        sentence = (
            f"{start}, {len(differences)} seeds: mean {mean:+.2f} points of top-1, 95 % interval {low:+.2f} to "
            f"{high:+.2f}."
        )
    if name == RECIPE and base == EXACT:
        sentence += f" That the recipe loses less than {-MARGIN} points {'holds' if low > MARGIN else 'is not shown'}."
    if name in CONTROLS:
        is_worse = max(differences) < MARGIN
        sentence += " It is worse, as it must be." if is_worse else " It must be worse, and is not: the test is blind."
    return sentence


def rows_of(found: Dict[str, List[Summary]]) -> List[List[str]]:
    rows = []
    for name, runs in found.items():
        whole = [run for run in runs if not math.isnan(run["top1"])]
        tops = [run["top1"] for run in whole]
        row = [name, ", ".join(map(top1_of, runs))]
        if whole:
            row += [
                f"{statistics.mean(tops):.2f}",
                f"{statistics.stdev(tops):.2f}" if len(tops) > 1 else "",
                f"{statistics.mean(run['top5'] for run in whole):.2f}",
                f"{statistics.median(run['samples'] / run['seconds'] for run in whole):,.0f}",
                f"{statistics.median(run['seconds'] for run in whole):.0f}",
            ]
        rows.append(row + [""] * (7 - len(row)))
    return rows


def none_if_failed(run: Summary) -> Any:
    return None if math.isnan(run["top1"]) else run["top1"]


def draw(found: Dict[str, List[Summary]], path: Path) -> None:
    """Draws the smoothed loss of each of this program's runs, and the top-1 of all runs beside that of float32."""
    figure, (of_loss, of_top1) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for number, (name, runs) in enumerate(found.items()):
        label: Optional[str] = name
        for lines in map(lines_of, runs):
            losses = [line["loss"] for line in lines if "loss" in line]
            updates = [line["update"] for line in lines if "loss" in line]
            if len(losses) > SMOOTHED:
                means = np.convolve(losses, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
                of_loss.plot(updates[SMOOTHED - 1 :], means, color=f"C{number}", linewidth=0.8, label=label)
                label = None
    of_loss.set_xlabel("update")
    of_loss.set_ylabel(f"training loss, mean of {SMOOTHED} updates")
    if of_loss.lines:
        of_loss.legend(fontsize="small", loc="upper right", framealpha=0.5)
    draw_top1(found, of_top1)
    figure.savefig(path)
    plt.close(figure)


def draw_top1(found: Dict[str, List[Summary]], axes: Any) -> None:
    """Draws a row of points for each arm; runs that are far below float32 are an arrow with their top-1."""
    tops = {name: [run["top1"] for run in runs if not math.isnan(run["top1"])] for name, runs in found.items()}
    nearest = min(tops[EXACT], default=0.0) - FAR
    near = [top for arm in tops.values() for top in arm if top >= nearest]
    for number, values in enumerate(tops.values()):
        shown = [top for top in values if top >= nearest]
        far = [top for top in values if top < nearest]
        if far:
            text = f"\u2190 {', '.join(f'{top:.1f}' for top in far)} %"
            axes.text(0.02, number, text, transform=axes.get_yaxis_transform(), va="center")
        axes.plot(shown, [number] * len(shown), "o", color=f"C{number}", alpha=0.6)
    margin = 0.1 * (max(near, default=1.0) - min(near, default=0.0) + 0.1)
    axes.set_xlim(min(near, default=0.0) - margin, max(near, default=1.0) + margin)
    axes.set_yticks(range(len(tops)), list(tops))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("top-1 of each seed (%)")


def lines_of(run: Summary) -> Sequence[Dict[str, Any]]:
    """Returns the lines of a run's metrics, none if it failed or if a peer made it."""
    path = Path(run.get("run", "")) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in arms_for(CONFIG, "cuda", {})]
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--name", default="fashion-mnist", help="name of the images, for the record")
    parser.add_argument("--arms", nargs="+", choices=names, metavar="ARM", help=f"some of: {'; '.join(names)}")
    parser.add_argument("--rates", nargs="+", default=[], help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1); 0: train nothing, take what is there")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune_proof"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all arms")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

"""Compares the loss curves of bfloat16 with float32 masters and of float32, on real images, for several seeds.

    python benchmarks/loss_curves.py --device cuda

Both formats of a seed start from the same weights and see the same batches of the package's sample. The figure has the
mean loss of every 20 updates; the record has the differences at the end, beside those between seeds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, Dict, List

import matplotlib.pyplot as plt
import torch
from command import run_command
from record import picture_path, write_record

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.optim import learning_rate
from vit_ipu.pipeline import BatchPlan

FORMATS = ("bfloat16", "float32")
WINDOW = 20
"""Updates of which the figure shows the mean."""
MODELS = {"cpu": {"variant": "vit_test", "image_size": 28}, "cuda": {"variant": "vit_small_patch16", "image_size": 112}}


def main() -> None:
    arguments = _arguments()
    torch.backends.cuda.matmul.allow_tf32 = False
    curves: Dict[str, List[List[float]]] = {name: [] for name in FORMATS}
    for seed in range(arguments.seeds):
        for name in FORMATS:
            curves[name].append(losses(config_for(arguments, name, seed), arguments.device))
            print(seed, name, f"{statistics.mean(curves[name][-1][-WINDOW:]):.4f}", flush=True)
    figure = picture_path("loss-curves", arguments.device)
    draw(curves, figure)
    last = {name: [statistics.mean(curve[-5 * WINDOW :]) for curve in curves[name]] for name in FORMATS}
    differences = [a - b for a, b in zip(last["bfloat16"], last["float32"])]
    spread = statistics.stdev(last["float32"])
    device = resolve_device(arguments.device)
    write_record(
        "loss-curves",
        f"Loss of bfloat16 with float32 masters and of float32 on {device}",
        device,
        config_for(arguments, "bfloat16", 0),
        [
            f"![loss curves]({figure.name})",
            f"Mean loss of the last {5 * WINDOW} of {arguments.updates} updates. Mean difference of the formats: "
            f"{statistics.mean(differences):+.4f} (of one seed {min(differences):+.4f} to {max(differences):+.4f}); "
            f"standard deviation between the seeds in float32: {spread:.4f}.",
        ],
        (
            ("seed", *FORMATS, "difference"),
            [
                [str(seed), f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"]
                for seed, (a, b) in enumerate(zip(last["bfloat16"], last["float32"]))
            ],
        ),
        {"last": last, "spread_of_seeds": spread},
    )


def config_for(arguments: argparse.Namespace, compute: str, seed: int) -> Config:
    values: Dict[str, Any] = {
        "model": dict(MODELS[arguments.device], num_classes=10),
        "data": {"source": "sample", "crop": "padded", "crop_padding": 2, "horizontal_flip": 0.5},
        "pipeline": {"global_batch_size": 64, "micro_batch_size": 16},
        "precision": {"compute": compute},
        "optim": {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_updates": 50},
        "run": {"updates": arguments.updates, "seed": seed},
    }
    return parse_config(values)


def losses(config: Config, device: str) -> List[float]:
    """Returns the loss of each update."""
    backend = build_backend(config, resolve_device(device))
    source, positions = open_source(config.data, config.model, "train"), BatchPlan.of(config).share(0, 1)
    total = config.run.updates or 0
    loader = TrainingLoader(source, config, positions, start_step=0, total_steps=total)
    results = [
        backend.train_step(batch, learning_rate(update, total, config.optim)) for update, batch in enumerate(loader)
    ]
    return [result.loss for result in results]


def draw(curves: Dict[str, List[List[float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, color in zip(FORMATS, ("tab:orange", "tab:blue")):
        for seed, curve in enumerate(curves[name]):
            means = [statistics.mean(curve[start : start + WINDOW]) for start in range(0, len(curve), WINDOW)]
            places = [WINDOW * (number + 0.5) for number in range(len(means))]
            axes.plot(places, means, color=color, linewidth=1, label=name if seed == 0 else None)
    axes.set_xlabel("update")
    axes.set_ylabel(f"loss, mean of {WINDOW} updates")
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=500)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

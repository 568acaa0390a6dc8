"""Measures how much training time a checkpoint of ViT-B with AdamW costs while it is written in the background.

Updates are timed without a checkpoint; then one is copied, checked and handed to the writer, and updates are made
until it is on the disk. The cost of the checkpoint is the time by which these updates, with the pause of the copy,
take longer than as many updates alone: updates are slower while the checkpoint is hashed and written. With --every
MINUTES between two checkpoints, the share of the time that they cost is compared with the limit of 5 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Dict

from command import run_command
from record import FOLDER, write_record

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import Backend, Device, HostBatch
from vit_ipu.benchmark import random_batch
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.runs.background import BackgroundWriter
from vit_ipu.runs.checkpoint import Progress, load_checkpoint, save_checkpoint
from vit_ipu.runs.divergence import problem_of_state
from vit_ipu.weights.native import ModelDescription, load_tensors

LIMIT = 0.05
"""Largest share of the time that checkpoints may cost."""
BATCHES = {
    # device: global batch size, micro-batch size
    "cpu": (4, 4),
    "cuda": (512, 64),
    "ipu-sim": (8, 1),
}


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    config = config_for(arguments.variant, *BATCHES[device.kind])
    backend = build_backend(config, device)
    batch = random_batch(config, backend.instances)
    update_seconds(backend, batch, 3)  # compiles, and makes the optimizer's state
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [
            measure(backend, batch, config, device, Path(folder), number, arguments.updates)
            for number in range(1, arguments.runs + 1)
        ]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    share = medians["cost"] / (60 * arguments.every)
    shortest = medians["cost"] / LIMIT
    names = ("gigabytes", "update", "pause", "written after", "cost", "load", "verified load")
    write_record(
        "checkpoint-pause",
        f"Cost of a checkpoint of {arguments.variant} with AdamW on {device}",
        device,
        config,
        [
            f"One in {arguments.every:g} minutes costs {share:.2%} of the training time (limit {LIMIT:.0%}); "
            f"at the limit, there is one in {shortest:.0f} s.",
            "Seconds. Pause: copy to the host's memory and check that all is finite. Cost: the pause, and what the "
            "updates until the checkpoint is on the disk take longer than updates alone.",
        ],
        (names, [[f"{row[name]:.3f}" for name in names] for row in (*rows, medians)]),
        {"share": share, "seconds": rows, "every_minutes": arguments.every},
        folder=arguments.records,
    )
    sys.exit(1 if share > LIMIT else 0)


def config_for(variant: str, global_batch: int, micro_batch: int) -> Config:
    return parse_config(
        {
            "model": {"variant": variant, "num_classes": 1000, "gelu": "tanh"},
            "data": {"source": "generated"},
            "pipeline": {
                "global_batch_size": global_batch,
                "micro_batch_size": micro_batch,
                "layers_per_ipu": [3, 3, 3, 3],
            },
            "optim": {"optimizer": "adamw", "learning_rate": 1e-4},
            "run": {"updates": 1000},
        }
    )


def measure(
    backend: Backend, batch: HostBatch, config: Config, device: Device, folder: Path, number: int, updates: int
) -> Dict[str, float]:
    """Trains with and without a checkpoint being written, and loads it; returns seconds, and the size in GB."""
    progress = Progress.at(number, config.pipeline)
    description = ModelDescription.of_run(config, tuple(map(str, range(config.model.num_classes))), 1000)
    alone = update_seconds(backend, batch, updates)
    writer, is_written = BackgroundWriter(), threading.Event()

    def write() -> None:
        save_checkpoint(folder, state, progress, description, device_kind=device.kind)
        is_written.set()

    start = time.perf_counter()
    state = backend.state_dict()
    assert problem_of_state(state) is None
    pause = time.perf_counter() - start
    writer.start(write)
    count = 0
    while not is_written.is_set():
        writer.raise_error()
        backend.train_step(batch, 1e-4)
        count += 1
    elapsed = time.perf_counter() - start
    writer.wait()
    alone = (alone + update_seconds(backend, batch, updates)) / 2
    (path,) = folder.glob(f"*{progress.update:08d}")
    return {
        "gigabytes": sum(file.stat().st_size for file in path.iterdir()) / 1e9,
        "update": alone,
        "pause": pause,
        "written after": elapsed,
        "cost": elapsed - count * alone,
        **load_seconds(backend, path, device),
    }


def update_seconds(backend: Backend, batch: HostBatch, count: int) -> float:
    """Returns the mean seconds of an update."""
    start = time.perf_counter()
    for _ in range(count):
        backend.train_step(batch, 1e-4)
    return (time.perf_counter() - start) / count


def load_seconds(backend: Backend, path: Path, device: Device) -> Dict[str, float]:
    """Returns the seconds to read a checkpoint's tensors, and to read and verify all of it."""
    start = time.perf_counter()
    load_tensors(path / "model.safetensors")
    load_tensors(path / "optimizer.safetensors")
    middle = time.perf_counter()
    load_checkpoint(path, device_kind=device.kind)
    return {"load": middle - start, "verified load": time.perf_counter() - middle}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="vit_base_patch16", help="shape of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or ipu-sim")
    parser.add_argument("--runs", type=int, default=5, help="number of checkpoints")
    parser.add_argument("--updates", type=int, default=10, help="updates that are timed before and after each")
    parser.add_argument("--every", type=float, default=10.0, metavar="MINUTES", help="minutes between checkpoints")
    parser.add_argument("--folder", help="folder on the disk to write to; that of temporary files if not given")
    parser.add_argument("--records", type=Path, default=FOLDER, help="folder for the record")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

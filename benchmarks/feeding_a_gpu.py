"""Measures whether the host keeps up with a GPU: training ViT-B/16 from a folder of JPEGs and from one batch in memory.

    python benchmarks/feeding_a_gpu.py FOLDER --workers 14

FOLDER has train/CLASS/ and val/CLASS/ (`photographs.write_folder` creates one). The ways to feed the GPU take turns,
with page-locked shared buffers of the loader and without. The time that a step waits for its batch is the loader's
time; the time of the step itself contains the copy to the GPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from command import run_command
from record import write_record

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import Backend, HostBatch
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.data.loading.loader import TrainingLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.pipeline import BatchPlan

BURN_IN = 6
Times = Tuple[float, float]
"""Median seconds of an update, and the median of its seconds spent waiting for the batch."""


def main() -> None:
    arguments = _arguments()
    if arguments.updates <= BURN_IN:
        sys.exit(f"--updates {arguments.updates}: give more than {BURN_IN}; the first {BURN_IN} updates are not timed")
    config, device = config_for(arguments), resolve_device("cuda")
    backend = build_backend(config, device)
    ways = {
        "one batch in page-locked memory": lambda: itertools.repeat(page_locked(config), config.run.updates or 0),
        "the folder": lambda: loaded(config, config.run.updates or 0),
        "the folder, not page-locked": lambda: loaded(config, config.run.updates or 0, page_lock=False),
    }
    found: Dict[str, List[Times]] = {name: [] for name in ways}
    for _ in range(arguments.runs):
        for name, way in ways.items():
            found[name].append(train(backend, way()))
    size = config.pipeline.global_batch_size
    rates = {name: [size / update for update, _ in times] for name, times in found.items()}
    rows = [
        [
            name,
            f"{statistics.median(rates[name]):,.0f}",
            f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}",
            f"{1e3 * statistics.median(wait for _, wait in times):.1f} ms",
        ]
        for name, times in found.items()
    ]
    write_record(
        "feeding-a-gpu",
        f"Training {config.model.variant} from a folder",
        device,
        config,
        [f"{arguments.workers} processes load; {arguments.updates} updates in each of {arguments.runs} runs."],
        (("from", "images/s (median)", "spread", "an update waits for its batch"), rows),
        {"images_per_second": rates},
    )


def config_for(arguments: argparse.Namespace) -> Config:
    classes = len(list((arguments.folder / "train").iterdir()))
    return parse_config(
        {
            "model": {"variant": "vit_base_patch16", "num_classes": classes},
            "data": {"source": "imagefolder", "path": str(arguments.folder), "num_workers": arguments.workers},
            "pipeline": {"global_batch_size": 512, "micro_batch_size": 128, "native_micro_batch_size": 256},
            "optim": {"optimizer": "sgd", "learning_rate": 0.01},
            "run": {"updates": arguments.updates},
        }
    )


def loaded(config: Config, steps: int, *, page_lock: bool = True) -> Iterator[HostBatch]:
    images = open_source(config.data, config.model, "train")
    positions = BatchPlan.of(config).share(0, 1)
    return iter(TrainingLoader(images, config, positions, start_step=0, total_steps=steps, page_lock=page_lock))


def page_locked(config: Config) -> HostBatch:
    batch = next(loaded(config, 1))
    return HostBatch(batch.images.clone().pin_memory(), batch.labels.clone())


def train(backend: Backend, batches: Iterator[HostBatch]) -> Times:
    updates, waits = [], []
    before = time.perf_counter()
    for batch in batches:
        arrived = time.perf_counter()
        backend.train_step(batch, 0.01)
        after = time.perf_counter()
        waits.append(arrived - before)
        updates.append(after - before)
        before = after
    return statistics.median(updates[BURN_IN:]), statistics.median(waits[BURN_IN:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

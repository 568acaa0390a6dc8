"""Measures how long a checkpoint of ViT-B with AdamW stops training, and how long it is being written meanwhile.

The pause is the time until training may continue: the state is copied, and its weights are checked. With
--every MINUTES, the share of the time that training is stopped is that of one checkpoint in so many minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import torch

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import Backend, Device
from vit_ipu.benchmark import random_batch
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.runs.checkpoint import Progress, load_checkpoint, require_finite, save_checkpoint
from vit_ipu.weights.native import ModelDescription, load_tensors


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    config = config_for(arguments.variant)
    backend = build_backend(config, device)
    backend.train_step(random_batch(config, backend.instances), 1e-4)  # so that the optimizer has its state
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [measure(backend, config, device, Path(folder), number) for number in range(1, arguments.runs + 1)]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    medians["percent_stopped"] = 100 * medians["pause_seconds"] / (60 * arguments.every)
    for name, value in medians.items():
        print(f"{name}: {value:.3f}")
    facts = {"variant": arguments.variant, "device": str(device), "simulated": device.simulated, "runs": rows}
    print(json.dumps(dict(medians, every_minutes=arguments.every, torch=torch.__version__, **facts)))


def config_for(variant: str) -> Config:
    return parse_config(
        {
            "model": {"variant": variant, "num_classes": 1000, "gelu": "tanh"},
            "data": {"source": "generated"},
            "pipeline": {"global_batch_size": 1, "micro_batch_size": 1},
            "optim": {"optimizer": "adamw", "learning_rate": 1e-4},
            "run": {"updates": 1000},
        }
    )


def measure(backend: Backend, config: Config, device: Device, folder: Path, number: int) -> Dict[str, float]:
    """Saves and loads one checkpoint; returns seconds and the size in GB."""
    progress = Progress.at(number, config.pipeline)
    description = ModelDescription.of_run(config, tuple(map(str, range(config.model.num_classes))), 1000)
    times: List[float] = [time.perf_counter()]
    state: Dict[str, Any] = backend.state_dict()
    require_finite(state, progress)
    times.append(time.perf_counter())
    path = save_checkpoint(folder, state, progress, description, device_kind=device.kind)
    times.append(time.perf_counter())
    load_tensors(path / "model.safetensors")
    load_tensors(path / "optimizer.safetensors")
    backend.load_state_dict(state)
    times.append(time.perf_counter())
    backend.load_state_dict(load_checkpoint(path, device_kind=device.kind)[0])
    times.append(time.perf_counter())
    pause, write, load, verified_load = (after - before for before, after in zip(times, times[1:]))
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e9
    return {
        "pause_seconds": pause,
        "write_seconds": write,
        "load_seconds": load,
        "verified_load_seconds": verified_load,
        "gigabytes": size,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="vit_base_patch16", help="shape of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or ipu-sim")
    parser.add_argument("--runs", type=int, default=5, help="number of checkpoints")
    parser.add_argument("--every", type=float, default=10.0, metavar="MINUTES", help="minutes between checkpoints")
    parser.add_argument("--folder", help="folder on the disk to write to; that of temporary files if not given")
    return parser.parse_args()


if __name__ == "__main__":
    main()

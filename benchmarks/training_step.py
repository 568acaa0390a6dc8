"""make bench: measures images per second of a training step, natively, over the simulator, and in a plain timm loop.

The steps take turns in one process on the same random batch; the ratios are the result. The plain loop uses timm's
model with the same micro-batches, optimizer, number format and torch.compile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Callable, Dict, List

import timm
import torch
import torch.nn.functional as F
from record import write_record

from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import HostBatch, Instances
from vit_ipu.benchmark import random_batch
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.step import Normalize

SIZES = {
    # device: variant, global batch size, micro-batch size
    "cpu": ("vit_small_patch16", 32, 4),
    "cuda": ("vit_base_patch16", 512, 64),
}
Step = Callable[[HostBatch], None]


def main() -> None:
    arguments = _arguments()
    device = resolve_device(arguments.device)
    config = config_for(arguments.device)
    steps: Dict[str, Step] = {"native": backend_step(config, arguments.device)}
    if arguments.device == "cpu":  # the native backend is eager there too
        steps["ipu-sim"] = backend_step(config, "ipu-sim")
    steps["timm"] = timm_step(config, arguments.device)
    times = take_turns(steps, config, runs=arguments.runs, burn_in=arguments.burn_in)
    medians = {name: statistics.median(found) for name, found in times.items()}
    images = config.pipeline.global_batch_size
    rows = [
        [
            name,
            f"{images / medians[name]:.1f}",
            f"{min(found):.4f} to {max(found):.4f} s",
            f"{medians['native'] / medians[name]:.3f}",
        ]
        for name, found in times.items()
    ]
    write_record(
        "training-step",
        f"Training step of {config.model.variant} on {device}",
        device,
        config,
        [f"{arguments.runs} timed updates of each step, in turns, after {arguments.burn_in} untimed updates."],
        (("what", "images/s (median)", "spread of an update", "speed relative to native"), rows),
        {"images_per_second": {name: images / median for name, median in medians.items()}, "seconds": times},
    )


def config_for(device: str) -> Config:
    """Returns the config: eager and in float32 on the CPU; on a GPU with the defaults of training."""
    if device == "cpu":
        return step_config(*SIZES[device], attention="explicit", precision={"compute": "float32"})
    return step_config(*SIZES[device], attention="auto", precision={})


def step_config(variant: str, total: int, micro: int, *, attention: str, precision: Dict[str, str]) -> Config:
    """Returns the config of one update on a global batch of `total` images, whose micro-batches are not merged."""
    return parse_config(
        {
            "model": {"variant": variant, "gelu": "tanh", "attention": attention},
            "data": {"source": "generated"},
            "pipeline": {
                "global_batch_size": total,
                "micro_batch_size": micro,
                "native_micro_batch_size": micro,
                "layers_per_ipu": [3, 3, 3, 3],
            },
            "precision": precision,
            "optim": {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05},
            "run": {"updates": 1},
        }
    )


def backend_step(config: Config, device: str) -> Step:
    backend = build_backend(config, resolve_device(device))

    def step(batch: HostBatch) -> None:
        backend.train_step(batch, 1e-4)

    return step


def timm_step(config: Config, device: str) -> Step:
    """Builds a step of timm's model in a plain accumulation loop."""
    cuda = device == "cuda"
    layer = {"act_layer": lambda: torch.nn.GELU(approximate="tanh")}
    model = timm.create_model(config.model.variant + "_224", pretrained=False, **layer).to(device).train()
    if not cuda:  # the same attention kernel as in the other steps
        for block in model.blocks:
            block.attn.fused_attn = False
    normalize = Normalize(config.data).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=cuda)
    micro = config.pipeline.micro_batch_size

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            logits = model(normalize(images))
        return F.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss_of) if cuda else loss_of

    def step(batch: HostBatch) -> None:
        for images, labels in zip(batch.images.split(micro), batch.labels.split(micro)):
            loss = compiled(images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
            (loss * (len(labels) / len(batch))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def take_turns(steps: Dict[str, Step], config: Config, *, runs: int, burn_in: int) -> Dict[str, List[float]]:
    """Returns the seconds of each timed update; the steps alternate."""
    batch = random_batch(config, Instances())
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for run in range(burn_in + runs):
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if run >= burn_in:
                times[name].append(time.perf_counter() - start)
    return times


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--runs", type=int, default=10, help="updates to time")
    parser.add_argument("--burn-in", type=int, default=3, help="untimed updates first")
    return parser.parse_args()


if __name__ == "__main__":
    main()

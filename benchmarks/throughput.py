"""Measures images per second of training and inference, ours beside timm, transformers and torchvision.

    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --device cpu        # ViT-S/16 only

All work on the same random images, which lie on the device, and take turns in one process; the ratios of the medians
are the result. Ours predicts in batches of its own choice; with several --inference-batches the peers predict in each,
and the fastest counts. On a GPU the rate of one large matrix product is measured too, beside which the operations of
the models are given.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import peers
import torch
from command import run_command
from record import write_record
from torch import Tensor

from vit_ipu.backends.build import resolve_device
from vit_ipu.backends.contract import HostBatch
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.benchmark import matrix_rate
from vit_ipu.config import Config
from vit_ipu.config_file import parse_config
from vit_ipu.model_cost import forward_flops

ROWS: Dict[str, Tuple[str, int, int, int]] = {
    # name: variant, image size, batch for training, batch for inference
    "b16-224": ("vit_base_patch16", 224, 512, 1024),
    "s16-224": ("vit_small_patch16", 224, 1024, 2048),
    "l16-224": ("vit_large_patch16", 224, 256, 512),
    "b16-384": ("vit_base_patch16", 384, 320, 512),
}
CPU_BATCH = 32
OURS = "vit_ipu"
JOBS = ("sgd", "adamw", "inference")


@dataclass
class Contestant:
    """A way to do the work: its function, its peak memory, and its measured seconds."""

    name: str
    batch: int
    work: Callable[[], object]
    gibibytes: float
    seconds: List[float] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    device = torch.device(arguments.device)
    table: List[List[str]] = []
    results: Dict[str, Any] = {}
    for row, job, batch in jobs_of(arguments):
        config = config_for(row, job, batch, arguments)
        rate = matrix_rate(config, resolve_device("cuda")) / 1e12 if device.type == "cuda" else None
        found = measure(config, job, device, arguments)
        made = summary(config, job, found, rate)
        results[f"{row} {job} {batch}"] = made
        table += rows_of(row, job, made)
        print(*("\t".join(line) for line in table[-len(found) :]), sep="\n", flush=True)
        del found
        gc.collect()
        torch.compiler.reset()
    rates = [made["matrix_tflops"] for made in results.values() if made["matrix_tflops"]]
    write_record(
        "throughput",
        f"Throughput of training and inference on {arguments.device}",
        resolve_device(arguments.device),
        config,
        [
            f"{arguments.turns} turns of {arguments.steps} steps each after {arguments.burn_in} untimed ones; images "
            "lie on the device. Peers: bfloat16 autocast in training and bfloat16 weights in inference on a GPU, both "
            "compiled; float32 on a CPU. GiB: peak of the device's allocator. Ratio: to the fastest peer. Shares count "
            "the operations that are made: here the last block computes the class token's row only.",
            *([f"Matrix rate: {min(rates):.0f} to {max(rates):.0f} TFLOP/s, bfloat16, 8192 x 8192 x 8192, measured "
               "before each row."] if rates else []),
        ],
        (("model", "job", "batch", "by", "images/s", "spread", "share of the matrix rate", "GiB", "ratio"), table),
        results,
    )  # fmt: skip


def jobs_of(arguments: argparse.Namespace) -> Iterator[Tuple[str, str, int]]:
    """Yields each row of the table, its job and its batch size."""
    for row in arguments.rows:
        for job in arguments.jobs:
            usual = CPU_BATCH if arguments.device == "cpu" else ROWS[row][3 if job == "inference" else 2]
            if job == "inference":
                batches = [max(arguments.inference_batches or [usual])]
            else:
                batches = arguments.batches or [usual]
            for batch in batches:
                yield row, job, batch


def config_for(row: str, job: str, batch: int, arguments: argparse.Namespace) -> Config:
    variant, size, _, _ = ROWS[row]
    on_cpu = arguments.device == "cpu"
    return parse_config(
        {
            "model": {"variant": variant, "image_size": size, "gelu": arguments.gelu},
            "data": {"source": "generated"},
            "pipeline": {
                "global_batch_size": batch,
                "micro_batch_size": 1 if on_cpu else batch,
                "native_micro_batch_size": None if on_cpu or job == "inference" else batch,
            },
            "precision": {"torch_compile": "never" if on_cpu else "always"},
            "optim": {
                "optimizer": "sgd" if job == "inference" else job,
                "learning_rate": 1e-4,
                "weight_decay": 0.05,
            },
            "run": {"updates": 1},
        }
    )


def measure(config: Config, job: str, device: torch.device, arguments: argparse.Namespace) -> List[Contestant]:
    """Builds all contestants, then lets them take turns."""
    count, side = config.pipeline.global_batch_size, config.model.image_size
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(config.model.num_classes, (count,), device=device)
    normalized = pixels.float() / 127.5 - 1
    contestants = [built(OURS, count, lambda: ours(config, job, device, pixels, labels), device, arguments.burn_in)]
    for name in arguments.peers:
        for batch in (arguments.inference_batches if job == "inference" else None) or [count]:
            if job == "inference":
                make = partial(peers.inference, name, config, normalized[:batch])
            else:
                make = partial(peers.training, name, config, normalized, labels, job)
            contestants.append(built(name, batch, make, device, arguments.burn_in))
    for _ in range(arguments.turns):
        for contestant in contestants:
            contestant.work()
            contestant.seconds.append(seconds_of(contestant.work, arguments.steps, device))
    return contestants


def ours(config: Config, job: str, device: torch.device, pixels: Tensor, labels: Tensor) -> Callable[[], object]:
    backend = NativeBackend(config, device)
    if job == "inference":
        return lambda: backend.predict(pixels)
    return lambda: backend.train_step(HostBatch(pixels, labels), 1e-4)


def built(
    name: str, batch: int, builder: Callable[[], Callable[[], object]], device: torch.device, burn_in: int
) -> Contestant:
    """Returns a contestant that has made its first steps, which compile, with the peak of its memory."""
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    work = builder()
    for _ in range(burn_in):
        work()
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    return Contestant(name, batch, work, peak / 2**30)


def seconds_of(work: Callable[[], object], steps: int, device: torch.device) -> float:
    """Returns the mean seconds of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def summary(config: Config, job: str, found: List[Contestant], matrix_tflops: Optional[float]) -> Dict[str, Any]:
    rows = []
    for one in found:
        operations = 2 * forward_flops(config.model, needed_only=one.name == OURS) * (1 if job == "inference" else 3)
        rate = one.batch / statistics.median(one.seconds)
        rows.append(
            {
                "by": one.name,
                "batch": one.batch,
                "images_per_second": rate,
                "spread": (one.batch / max(one.seconds), one.batch / min(one.seconds)),
                "share_of_matrix_rate": rate * operations / (matrix_tflops * 1e12) if matrix_tflops else None,
                "gibibytes": one.gibibytes,
            }
        )
    fastest = max((row["images_per_second"] for row in rows[1:]), default=math.nan)
    return {"matrix_tflops": matrix_tflops, "rows": rows, "ratio": rows[0]["images_per_second"] / fastest}


def rows_of(row: str, job: str, made: Dict[str, Any]) -> List[List[str]]:
    lines = []
    for one in made["rows"]:
        low, high = one["spread"]
        share = one["share_of_matrix_rate"]
        lines.append(
            [
                row,
                job if job == "inference" else f"training, {job}",
                str(one["batch"]),
                one["by"],
                f"{one['images_per_second']:,.1f}",
                f"{low:,.1f} to {high:,.1f}",
                "" if share is None else f"{100 * share:.1f} %",
                f"{one['gibibytes']:.1f}" if one["gibibytes"] else "",
                f"{made['ratio']:.3f}" if one["by"] == OURS else "",
            ]
        )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="default: all, on a CPU s16-224")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS, help="training by SGD or AdamW, or not")
    parser.add_argument("--peers", nargs="+", default=list(peers.PEERS), choices=peers.PEERS)
    parser.add_argument("--gelu", default="erf", choices=["tanh", "erf"], help="form of GELU here; the peers have erf")
    parser.add_argument("--batches", type=int, nargs="+", help="other batch sizes of training than the table's")
    parser.add_argument("--inference-batches", type=int, nargs="+", help="batch sizes of the peers' inference")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--burn-in", type=int, default=3, help="untimed steps of each first")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (list(ROWS) if arguments.device == "cuda" else ["s16-224"])
    return arguments


if __name__ == "__main__":
    run_command(main)

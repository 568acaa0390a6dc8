"""Measures images per second of training and inference, ours beside timm, transformers and torchvision.

    python benchmarks/throughput.py --device cuda
    python benchmarks/throughput.py --device cpu        # ViT-S/16 only

All work on the same random images, which lie on the device, and take turns in one process; the ratios of the medians
are the result. On a GPU the rate of one large matrix product is measured too, beside which the operations of the
models are given.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Tuple

import peers
import torch
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


@dataclass
class Contestant:
    """A way to do the work: its function, its peak memory, and its measured seconds."""

    name: str
    work: Callable[[], object]
    gibibytes: float
    seconds: List[float] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    device = torch.device(arguments.device)
    table: List[List[str]] = []
    results: Dict[str, Any] = {"matrix_tflops": None}
    for row in arguments.rows:
        for job in arguments.jobs:
            config = config_for(row, job, device, arguments)
            if device.type == "cuda":
                results["matrix_tflops"] = matrix_rate(config, resolve_device("cuda")) / 1e12
            found = measure(config, job, device, arguments)
            results[f"{row} {job}"] = summary(config, job, found, results["matrix_tflops"])
            table += rows_of(row, job, config, results[f"{row} {job}"])
            print(*("\t".join(line) for line in table[-len(found) :]), sep="\n", flush=True)
            gc.collect()
            torch.compiler.reset()
    write_record(
        "throughput",
        f"Throughput of training and inference on {arguments.device}",
        resolve_device(arguments.device),
        config,
        [
            f"{arguments.turns} turns of {arguments.steps} steps each after {arguments.burn_in} untimed ones; images "
            "lie on the device. Peers: bfloat16 autocast in training and bfloat16 weights in inference on a GPU, both "
            "compiled; float32 on a CPU. GiB: peak of the device's allocator.",
            f"Matrix rate: {results['matrix_tflops'] or 0:.0f} TFLOP/s, bfloat16, 8192 x 8192 x 8192."
            if results["matrix_tflops"]
            else "",
        ],
        (("model", "job", "batch", "by", "images/s", "spread", "share of the matrix rate", "GiB", "ratio"), table),
        results,
    )


def config_for(row: str, job: str, device: torch.device, arguments: argparse.Namespace) -> Config:
    variant, size, training_batch, inference_batch = ROWS[row]
    batch = arguments.batch or (training_batch if job == "training" else inference_batch)
    on_cpu = device.type == "cpu"
    if on_cpu:
        batch = arguments.batch or CPU_BATCH
    return parse_config(
        {
            "model": {"variant": variant, "image_size": size, "gelu": arguments.gelu},
            "data": {"source": "generated"},
            "pipeline": {
                "global_batch_size": batch,
                "micro_batch_size": 1 if on_cpu else batch,
                "native_micro_batch_size": None if on_cpu else batch,
            },
            "precision": {"torch_compile": "never" if on_cpu else "always"},
            "optim": {"optimizer": arguments.optimizer, "learning_rate": 1e-4, "weight_decay": 0.05},
            "run": {"updates": 1},
        }
    )


def measure(config: Config, job: str, device: torch.device, arguments: argparse.Namespace) -> List[Contestant]:
    """Builds all contestants, then lets them take turns."""
    count, side = config.pipeline.global_batch_size, config.model.image_size
    pixels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(config.model.num_classes, (count,), device=device)
    normalized = pixels.float() / 127.5 - 1

    def builder(name: str) -> Callable[[], object]:
        if name == OURS:
            return ours(config, job, device, pixels, labels)
        if job == "training":
            return peers.training(name, config, normalized, labels, arguments.optimizer)
        return peers.inference(name, config, normalized)

    names = [OURS, *arguments.peers]
    contestants = [built(name, builder, device, arguments.burn_in) for name in names]
    for _ in range(arguments.turns):
        for contestant in contestants:
            contestant.work()
            contestant.seconds.append(seconds_of(contestant.work, arguments.steps, device))
    return contestants


def ours(config: Config, job: str, device: torch.device, pixels: Tensor, labels: Tensor) -> Callable[[], object]:
    backend = NativeBackend(config, device)
    if job == "training":
        return lambda: backend.train_step(HostBatch(pixels, labels), 1e-4)
    return lambda: backend.predict(pixels)


def built(name: str, builder: Callable[[str], Callable[[], object]], device: torch.device, burn_in: int) -> Contestant:
    """Returns a contestant that has made its first steps, which compile, with the peak of its memory."""
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    work = builder(name)
    for _ in range(burn_in):
        work()
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    return Contestant(name, work, peak / 2**30)


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


def summary(config: Config, job: str, found: List[Contestant], matrix_tflops: Any) -> Dict[str, Any]:
    count = config.pipeline.global_batch_size
    operations = 2 * forward_flops(config.model) * (3 if job == "training" else 1)
    result: Dict[str, Any] = {}
    for one in found:
        rate = count / statistics.median(one.seconds)
        share = rate * operations / (matrix_tflops * 1e12) if matrix_tflops else None
        result[one.name] = {
            "images_per_second": rate,
            "spread": (count / max(one.seconds), count / min(one.seconds)),
            "share_of_matrix_rate": share,
            "gibibytes": one.gibibytes,
        }
    fastest = max(result[name]["images_per_second"] for name in result if name != OURS)
    result["ratio_to_fastest_peer"] = result[OURS]["images_per_second"] / fastest
    return result


def rows_of(row: str, job: str, config: Config, found: Dict[str, Any]) -> List[List[str]]:
    lines = []
    for name in (name for name in found if name != "ratio_to_fastest_peer"):
        one = found[name]
        low, high = one["spread"]
        share = one["share_of_matrix_rate"]
        lines.append(
            [
                row,
                f"{job}, {config.optim.optimizer}" if job == "training" else job,
                str(config.pipeline.global_batch_size),
                name,
                f"{one['images_per_second']:,.1f}",
                f"{low:,.1f} to {high:,.1f}",
                "" if share is None else f"{100 * share:.1f} %",
                f"{one['gibibytes']:.1f}" if one["gibibytes"] else "",
                f"{found['ratio_to_fastest_peer']:.3f}" if name == OURS else "",
            ]
        )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="default: all, on a CPU s16-224")
    parser.add_argument("--jobs", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--peers", nargs="+", default=list(peers.PEERS), choices=peers.PEERS)
    parser.add_argument("--optimizer", default="sgd", choices=["sgd", "adamw"])
    parser.add_argument("--gelu", default="erf", choices=["tanh", "erf"], help="form of GELU here; the peers have erf")
    parser.add_argument("--batch", type=int, help="another batch size than the table's")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--burn-in", type=int, default=3, help="untimed steps of each first")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (list(ROWS) if arguments.device == "cuda" else ["s16-224"])
    return arguments


if __name__ == "__main__":
    main()

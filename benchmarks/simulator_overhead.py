"""Measures what simulating costs: a training update natively, and over simulated IPUs in each of their numerics.

On the CPU the model is the quickstart's; on a GPU it is ViT-S/14 at 112 px in micro-batches of 16. "By default" is what
`vit-ipu train` runs; "eager" computes the same micro-batches one after the other, as the simulator does. The updates
take turns in one process on one random batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from command import run_command
from record import write_record

from vit_ipu import simulator
from vit_ipu.backends.build import build_backend, resolve_device
from vit_ipu.backends.contract import HostBatch, Instances
from vit_ipu.benchmark import random_batch
from vit_ipu.config import Config
from vit_ipu.config_file import load_config, parse_config

Step = Callable[[HostBatch], None]
FLOAT32 = {"compute": "float32"}
RECIPE = {
    "compute": "float16",
    "stochastic_rounding": True,
    "accumulation": "float16",
    "first_moment": "float16",
    "loss_scale": 256.0,
}
MOST_DEFAULT = {"cpu": 1.3, "cuda": 2.5}
"""Largest time of exact float32 in that of the native update by default, by device."""
MOST_FLOAT32_PARTIALS, MOST_FLOAT16_PARTIALS = 2.0, 4.0
"""Largest times of an IPU's numerics in that of the exact float16 recipe."""


class Case(NamedTuple):
    """A way to compute the update; `numerics` is None natively."""

    precision: Dict[str, Any]
    numerics: Optional[str] = None
    is_eager: bool = False


NATIVE, EAGER, EXACT, EXACT_HALF = "native", "native, eager", "exact, float32", "exact, float16 recipe"
WIDE, HALF = "ipu, float32 partials", "ipu, float16 partials"
CASES = {
    NATIVE: Case(FLOAT32),
    EAGER: Case(FLOAT32, is_eager=True),
    EXACT: Case(FLOAT32, "exact"),
    EXACT_HALF: Case({**RECIPE, "partials": "float32"}, "exact"),
    WIDE: Case({**RECIPE, "partials": "float32"}, "ipu"),
    HALF: Case({**RECIPE, "partials": "float16"}, "ipu"),
}


def main() -> None:
    arguments = _arguments()
    kind = arguments.device
    steps = {name: step_of(case, kind) for name, case in CASES.items()}
    simulator.install(4 * len(CASES), device=kind)  # all of them hold their IPUs
    config = config_of(CASES[EXACT], kind)
    times = take_turns(steps, config, runs=arguments.runs, burn_in=arguments.burn_in)
    medians = {name: statistics.median(found) for name, found in times.items()}
    images = config.pipeline.global_batch_size * config.pipeline.device_iterations
    rows = [
        [
            name,
            f"{images / medians[name]:,.0f}",
            f"{medians[name]:.4f}",
            f"{min(found):.4f} to {max(found):.4f}",
            f"{medians[name] / medians[NATIVE]:.2f}",
        ]
        for name, found in times.items()
    ]
    judged = [
        (EXACT, NATIVE, MOST_DEFAULT[kind]),
        (WIDE, EXACT_HALF, MOST_FLOAT32_PARTIALS),
        (HALF, EXACT_HALF, MOST_FLOAT16_PARTIALS),
    ]
    ratios = [
        f"{name}: {medians[name] / medians[of]:.2f} x the time of {of} (target {most:g})" for name, of, most in judged
    ]
    simulated = resolve_device("ipu-sim" if kind == "cpu" else "ipu-sim:cuda", numerics="ipu")
    write_record(
        "simulator-overhead",
        f"What simulating costs on {kind}",
        simulated,
        config,
        [f"{arguments.runs} timed host steps of each, in turns, after {arguments.burn_in} untimed ones.", *ratios],
        (("update", "images/s (median)", "seconds", "spread", "time over native"), rows),
        {"ratios": {name: medians[name] / medians[of] for name, of, _ in judged}, "seconds": times},
    )


def step_of(case: Case, kind: str) -> Step:
    name = kind if case.numerics is None else {"cpu": "ipu-sim", "cuda": "ipu-sim:cuda"}[kind]
    backend = build_backend(config_of(case, kind), resolve_device(name, numerics=case.numerics))
    return lambda batch: backend.train_step(batch, 1e-4).wait()


def config_of(case: Case, kind: str) -> Config:
    """Returns the config of an update; eager updates are not compiled and do not merge micro-batches."""
    precision = dict(case.precision, **({"torch_compile": "never"} if case.is_eager else {}))
    if kind == "cpu":
        settings = [f"precision.{key}={str(value).lower()}" for key, value in precision.items()]
        settings += ["pipeline.native_micro_batch_size=8"] if case.is_eager else []
        return load_config("quickstart", settings)
    pipeline: Dict[str, Any] = {"global_batch_size": 256, "micro_batch_size": 16, "layers_per_ipu": [3, 3, 3, 3]}
    if case.is_eager:
        pipeline["native_micro_batch_size"] = 16
    shape = {"width": 384, "depth": 12, "num_heads": 6, "patch_size": 14, "image_size": 112, "num_classes": 1000}
    return parse_config(
        {
            "model": {**shape, "gelu": "tanh"},
            "data": {"source": "generated"},
            "pipeline": pipeline,
            "precision": precision,
            "optim": {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05},
            "run": {"updates": 1},
        }
    )


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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=list(MOST_DEFAULT))
    parser.add_argument("--runs", type=int, default=10, help="host steps to time")
    parser.add_argument("--burn-in", type=int, default=3, help="untimed host steps first")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

"""Measures training over several GPUs of one host, and checks that it is the same training.

    python benchmarks/several_gpus.py --processes 1 2

It starts torchrun by itself. Batches lie on the GPUs. The share of a step that waits for gradients is the difference to
a step without any exchange. Then ten updates of one process and of several are compared, and a run whose last process
is killed must end within 30 seconds, and continue in one process with the same samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch
from command import run_command
from record import write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.backends.contract import HostBatch, Instances
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.backends.native.distributed import local_device
from vit_ipu.backends.native.passes import Passes
from vit_ipu.benchmark import random_batch
from vit_ipu.config import Config
from vit_ipu.config_file import dump_config, parse_config
from vit_ipu.pipeline import BatchPlan

BURN_IN, STEPS = 4, 20

KILLED = """
import os, signal
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.backends.native.passes import Passes
from vit_ipu.__main__ import main
original, steps = NativeBackend.train_step, []
def train_step(self, batch, rate):
    steps.append(original(self, batch, rate))
    if self.instances.index == self.instances.count - 1 and len(steps) == 6:
        open("killed_at", "w").write(repr(__import__("time").time()))
        os.kill(os.getpid(), signal.SIGKILL)
    return steps[-1]
NativeBackend.train_step = train_step
main()
"""
"""A program that trains, and kills its last process after six host steps."""
KILLED_RUN = {
    "model": {"variant": "vit_tiny_patch16", "image_size": 64, "depth": 4, "num_classes": 10},
    "data": {"source": "generated", "num_train": 2048, "num_eval": 64, "mixup_alpha": 0.8},
    "pipeline": {"global_batch_size": 64, "micro_batch_size": 8},
    "precision": {"torch_compile": "never"},
    "optim": {"optimizer": "sgd", "learning_rate": 0.02},
    "run": {"updates": 12, "checkpoint_every": 2, "log_every": 1},
}
"""Config of the run whose last process is killed."""


def main() -> None:
    arguments = _arguments()
    if arguments.worker:
        work(arguments)
        return
    device = resolve_device(arguments.device)
    if arguments.device == "cuda" and torch.cuda.device_count() < max(arguments.processes):
        sys.exit(f"--processes {max(arguments.processes)}: each needs a GPU; there are {torch.cuda.device_count()}")
    speeds = {count: launch(count, "speed", arguments) for count in arguments.processes}
    updates = {count: launch(count, "updates", arguments) for count in arguments.processes}
    ended = lost_process(max(arguments.processes), arguments)
    rows, results = table_of(speeds, arguments), {"speeds": speeds, "updates": updates, "lost_process": ended}
    rounding = updates[arguments.processes[0]]["worst_difference_to_float32"]
    others = ", ".join(
        f"{count} processes {updates[count]['worst_difference_to_float32']:.2e}" for count in arguments.processes[1:]
    )
    write_record(
        "several-gpus",
        f"Training {arguments.variant} over several {arguments.device} devices of one host",
        device,
        speed_config(arguments, arguments.batches[0], 1),
        [
            f"{STEPS} steps after {BURN_IN} untimed ones.",
            f"Ten updates, largest relative difference of a weight to float32 in one process: bfloat16 in one process "
            f"{rounding:.2e}, {others}.",
            f"After the last of {max(arguments.processes)} processes was killed, all had ended "
            f"{ended['seconds_to_end']:.1f} s later. Continued in one process, the losses of the following updates "
            f"differ from those of an uninterrupted run by at most {ended['largest_difference_of_loss']:.2%}.",
        ],
        (("batch of a process", "processes", "images/s", "efficiency", "step", "waits for gradients"), rows),
        results,
    )


def table_of(speeds: Dict[int, Dict[str, Any]], arguments: argparse.Namespace) -> List[List[str]]:
    rows = []
    for batch in arguments.batches:
        first = speeds[arguments.processes[0]][str(batch)]
        alone = first["images_per_second"] / arguments.processes[0]
        for count in arguments.processes:
            one = speeds[count][str(batch)]
            rows.append(
                [
                    str(batch),
                    str(count),
                    f"{one['images_per_second']:,.0f}",
                    f"{100 * one['images_per_second'] / count / alone:.1f} %",
                    f"{1e3 * one['seconds']:.1f} ms",
                    f"{100 * one['waiting']:.1f} %",
                ]
            )
    return rows


def launch(count: int, job: str, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Returns what the first of `count` processes printed."""
    options = ["--device", arguments.device, "--variant", arguments.variant, "--worker", job]
    command = [*torchrun(count), __file__, *options, "--batches", *map(str, arguments.batches)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS="4")
    )
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    print(count, job, found, flush=True)
    return found  # type: ignore[no-any-return]


def torchrun(count: int) -> List[str]:
    if count == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


# ------------------------------------------------------------------------------ in each process


def work(arguments: argparse.Namespace) -> None:
    found: Dict[str, Any] = {}
    if arguments.worker == "speed":
        for batch in arguments.batches:
            found[str(batch)] = speed(arguments, batch)
    else:
        found = ten_updates(arguments)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(found))


def speed_config(arguments: argparse.Namespace, batch: int, processes: int) -> Config:
    return parse_config(
        {
            "model": {"variant": arguments.variant},
            "data": {"source": "generated"},
            "pipeline": {
                "global_batch_size": batch * processes,
                "micro_batch_size": batch,
                "native_micro_batch_size": batch,
            },
            "optim": {"optimizer": "sgd", "learning_rate": 1e-3},
            "run": {"updates": 1},
        }
    )


def speed(arguments: argparse.Namespace, batch: int) -> Dict[str, Any]:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    config = speed_config(arguments, batch, processes)
    backend = NativeBackend(config, local_device(arguments.device))
    host = random_batch(config, backend.instances)
    on_device = HostBatch(*(tensor.to(backend._device) for tensor in host.inputs))
    together = seconds_of(backend, on_device)
    alone = together
    if processes > 1:
        with without_exchange(backend._passes):
            alone = seconds_of(backend, on_device)
    if batch == arguments.batches[-1]:
        backend.close()
    return {
        "images_per_second": batch * processes / together,
        "seconds": together,
        "seconds_without_exchange": alone,
        "waiting": max(0.0, 1 - alone / together),
    }


@contextmanager
def without_exchange(passes: Passes) -> Iterator[None]:
    """Makes the processes keep their gradients to themselves while the body runs."""
    mean, passes._mean = passes._mean, None
    with nullcontext() if passes._parallel is None else passes._parallel.no_sync():
        yield
    passes._mean = mean


def seconds_of(backend: NativeBackend, batch: HostBatch) -> float:
    """Returns the median seconds of a step, each from the end of the one before."""
    times = []
    for _ in range(BURN_IN + STEPS):
        start = time.perf_counter()
        result = backend.train_step(batch, 1e-3)
        times.append(time.perf_counter() - start)
    result.wait()
    return statistics.median(times[BURN_IN:])


def ten_updates(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Returns how far bfloat16 weights are from float32 ones of one process, both after ten updates with mixup."""
    weights = {}
    for compute in ("bfloat16", "float32"):
        if compute == "float32":
            os.environ.pop("WORLD_SIZE", None)  # alone
        config = parse_config(
            {
                "model": {"variant": "vit_tiny_patch16", "image_size": 112, "depth": 4, "num_classes": 10},
                "data": {"source": "generated", "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
                "pipeline": {"global_batch_size": 64, "micro_batch_size": 8, "native_micro_batch_size": 16},
                "precision": {"compute": compute, "torch_compile": "never"},
                "optim": {"optimizer": "sgd", "learning_rate": 0.02},
                "run": {"updates": 1},
            }
        )
        backend = NativeBackend(config, local_device(arguments.device))
        for seed in range(10):
            seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
            backend.train_step(share_of(random_batch(seeded, Instances()), seeded, backend.instances), 0.02).wait()
        weights[compute] = backend.state_dict()["model"]
        if compute == "bfloat16":
            backend.close()
    differences = {}
    for name, wanted in weights["float32"].items():
        if not name.endswith("qkv.bias"):  # a third of it has no gradient but rounding
            differences[name] = float((weights["bfloat16"][name] - wanted).norm() / wanted.norm().clamp(min=1e-12))
    worst = max(differences, key=lambda name: differences[name])
    return {"worst_difference_to_float32": differences[worst], "of": worst}


def share_of(batch: HostBatch, config: Config, instances: Instances) -> HostBatch:
    """Returns the samples of a global batch that a process feeds."""
    positions = instances.positions(BatchPlan.of(config))
    assert batch.mixing is not None
    size = config.pipeline.micro_batch_size
    return HostBatch(batch.images[positions], batch.labels[positions], batch.mixing[positions[::size] // size])


def lost_process(count: int, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Trains, kills the last process, and continues in one process; compares with an uninterrupted run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(dump_config(parse_config(KILLED_RUN)))
        (folder / "killed.py").write_text(KILLED)
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))

        def train(*program: str, output: str) -> subprocess.CompletedProcess[str]:
            options = ["train", "config.yaml", "--device", arguments.device, "--output", output]
            resumes = ["--resume"] if (folder / output).is_dir() else []
            return subprocess.run(
                [*program, *options, *resumes], cwd=name, env=environment, capture_output=True, text=True, check=False
            )

        killed = train(*torchrun(count), "killed.py", output="run")
        seconds = time.time() - float((folder / "killed_at").read_text())
        message = [line for line in killed.stderr.splitlines() if line.startswith("vit-ipu:")]
        for output in ("run", "whole"):
            done = train(sys.executable, "-m", "vit_ipu", output=output)
            if done.returncode != 0:
                sys.exit(done.stderr[-2000:])
        found, wanted = (losses_by_update(folder / which / "metrics.jsonl") for which in ("run", "whole"))
        return {
            "exit_code": killed.returncode,
            "seconds_to_end": seconds,
            "messages": message,
            "updates": sorted(found),
            "largest_difference_of_loss": max(abs(found[update] / wanted[update] - 1) for update in wanted),
        }


def losses_by_update(metrics: Path) -> Dict[int, float]:
    """Returns the loss of each update in the metrics of a run."""
    lines = map(json.loads, metrics.open())
    return {line["update"]: line["loss"] for line in lines if "loss" in line}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 64], help="images of a process")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--variant", default="vit_base_patch16")
    parser.add_argument("--worker", choices=["speed", "updates"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

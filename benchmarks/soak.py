"""Trains for a long time and measures memory, open files and processes: python benchmarks/soak.py --minutes 120.

`vit-ipu train` runs the quickstart's model as a process, with evaluations and checkpoints every few seconds, two worker
processes and an end that is never reached. The sums over the process and its children are sampled at regular times:
memory that is not a file's (Pss_Anon and Pss_Shmem, which count shared pages once), and Rss. A file's pages, such as
those of torch's libraries, count less while other programs on the machine map them, so they are left out. The warm-up,
the first fifth of the time, is left out; then the first and the last third are compared. The exit code is 1 if the
median memory has grown by more than 2 %, or if more files or processes were open at a time.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence

from command import run_command
from record import FOLDER, write_record

from vit_ipu.backends.build import resolve_device
from vit_ipu.config_file import load_config
from vit_ipu.runs.metrics import read_metrics

EVERY = 20
"""Updates from one checkpoint to the next; an evaluation comes after every second one."""
SETTINGS = (
    "run.updates=100000000",
    f"run.evaluate_every={2 * EVERY}",
    f"run.checkpoint_every={EVERY}",
    "pipeline.global_batch_size=32",
    "pipeline.micro_batch_size=4",
    "data.num_eval=64",
    "data.num_workers=2",
)
CONFIG = "quickstart"
WARM_UP = 0.2
"""Share of the time before memory is compared."""
FEWEST_EVALUATIONS = 20
MOST_GROWTH = 0.02
NUM_SAMPLES = 600
TERMINATED = (130, 143, 75)
"""Exit codes of a run that a signal has ended with a checkpoint."""


class Sample(NamedTuple):
    """Sums over the processes of a run at a time."""

    seconds: float
    memory: int
    """Bytes that are not a file's; pages that several processes share are counted once."""
    rss: int
    """Bytes of memory; pages that several processes share are counted for each."""
    files: int
    processes: int


def main() -> None:
    arguments = _arguments()
    seconds = 60 * arguments.minutes
    device = resolve_device(arguments.device)
    config = load_config(CONFIG, SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        samples = soak(run, arguments.device, seconds)
        lines = read_metrics(run / "metrics.jsonl")
    updates = lines[-1]["update"] if lines else 0
    evaluations = sum("top1" in line for line in lines)
    if evaluations < FEWEST_EVALUATIONS:
        sys.exit(
            f"{evaluations} evaluations and {updates} updates in {arguments.minutes:g} minutes are too few: "
            f"give --minutes for {FEWEST_EVALUATIONS} evaluations"
        )
    growth = growth_of(samples, lambda sample: sample.memory)
    problems = problems_of(samples)
    counts = f"{updates:,} updates, {evaluations:,} evaluations, {updates // EVERY:,} checkpoints"
    write_record(
        "soak",
        f"Training for {arguments.minutes:g} minutes on {device}",
        device,
        config,
        [
            f"{counts}, {len(samples)} samples.",
            f"Memory after the warm-up: {growth:+.2%} from the first to the last third (limit {MOST_GROWTH:.0%}).",
            "; ".join(problems) or "Memory, open files and processes stay flat.",
        ],
        (("minutes", "memory (MB)", "Rss (MB)", "open files", "processes"), _rows(samples)),
        {"growth": growth, "problems": problems, "samples": [list(sample) for sample in _thinned(samples, 60)]},
        folder=arguments.records,
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


def soak(run: Path, device: str, seconds: float) -> List[Sample]:
    """Trains for a time, stops the run by SIGTERM, and returns the samples."""
    command = [sys.executable, "-m", "vit_ipu", "train", CONFIG, "--device", device, "--output", str(run)]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        samples = list(_samples(process, seconds))
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code not in TERMINATED:
        sys.exit(f"vit-ipu train ended with exit code {code}")
    return samples


def _samples(process: subprocess.Popen[bytes], seconds: float) -> Iterator[Sample]:
    start = time.monotonic()
    while time.monotonic() < start + seconds and process.poll() is None:
        yield sample_of(process.pid, time.monotonic() - start)
        time.sleep(seconds / NUM_SAMPLES)


def sample_of(pid: int, seconds: float) -> Sample:
    """Returns the sums over a process and all its descendants, as far as these have not ended meanwhile."""
    pids = [pid, *_descendants(pid)]
    memory, rss, files, processes = 0, 0, 0, 0
    for each in pids:
        try:
            sizes = _memory(each)
            files += len(list(Path(f"/proc/{each}/fd").iterdir()))
        except (OSError, KeyError):  # it has ended
            continue
        memory += sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]
        rss, processes = rss + sizes["Rss:"], processes + 1
    return Sample(seconds, memory, rss, files, processes)


def _memory(pid: int) -> Dict[str, int]:
    """Returns the sizes of a process in bytes, by the names of /proc."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split()[0]: 1024 * int(line.split()[1]) for line in lines}


def _descendants(pid: int) -> List[int]:
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children_of(task)]
    except OSError:  # it has ended
        return []
    return [each for child in children for each in (child, *_descendants(child))]


def _children_of(task: Path) -> List[str]:
    return (task / "children").read_text().split()


# ------------------------------------------------------------------------------------------ judging


def growth_of(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Returns by which share the median of a value is larger in the last third than in the first, after the warm-up."""
    first, last = _thirds(samples)
    return statistics.median(map(value, last)) / statistics.median(map(value, first)) - 1


def problems_of(samples: Sequence[Sample]) -> List[str]:
    """Returns one sentence for each measure that has grown."""
    growth = growth_of(samples, lambda sample: sample.memory)
    problems = [f"memory has grown by {growth:.2%}, more than {MOST_GROWTH:.0%}"] if growth > MOST_GROWTH else []
    first, last = _thirds(samples)
    for name in ("files", "processes"):
        most = [max(getattr(sample, name) for sample in part) for part in (first, last)]
        if most[1] > most[0]:
            problems.append(f"{name}: at most {most[1]} at a time at the end, {most[0]} after the warm-up")
    return problems


def _thirds(samples: Sequence[Sample]) -> List[Sequence[Sample]]:
    """Returns the first and the last third of the samples after the warm-up."""
    judged = [sample for sample in samples if sample.seconds >= WARM_UP * samples[-1].seconds]
    third = len(judged) // 3
    return [judged[:third], judged[-third:]]


def _rows(samples: Sequence[Sample]) -> List[List[str]]:
    return [
        [
            f"{sample.seconds / 60:.1f}",
            f"{sample.memory / 1e6:,.0f}",
            f"{sample.rss / 1e6:,.0f}",
            f"{sample.files}",
            f"{sample.processes}",
        ]
        for sample in _thinned(samples, 13)
    ]


def _thinned(samples: Sequence[Sample], count: int) -> List[Sample]:
    """Returns at most `count` samples at regular times, the first and the last among them."""
    if len(samples) <= count:
        return list(samples)
    return [samples[i * (len(samples) - 1) // (count - 1)] for i in range(count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--device", default="ipu-sim")
    parser.add_argument("--records", type=Path, default=FOLDER, help="folder for the record")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)

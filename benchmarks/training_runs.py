"""Runs of `vit-ipu train` in separate processes, for comparisons: finished ones are kept, interrupted ones resumed."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import scipy.stats

Summary = Dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One of the ways to train that are compared: a config, a device, and settings that the arm changes."""

    name: str
    config: str
    device: str
    numerics: Optional[str] = None
    settings: Dict[str, str] = field(default_factory=dict)


def train_all(arms: Sequence[Arm], seeds: Sequence[int], folder: Path, *, jobs: int = 1) -> Dict[str, List[Summary]]:
    """Trains each arm with each seed, `jobs` at a time, and returns the summaries of each arm, in the seeds' order."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pairs = [(arm, seed) for arm in arms for seed in seeds]
    with ThreadPoolExecutor(jobs) as pool:
        summaries = list(pool.map(lambda pair: train(*pair, folder, threads), pairs))
    found: Dict[str, List[Summary]] = {arm.name: [] for arm in arms}
    for (arm, _), summary in zip(pairs, summaries):
        found[arm.name].append(summary)
    return found


def train(arm: Arm, seed: int, folder: Path, threads: int) -> Summary:
    """Trains in a separate process and returns the summary, with a top-1 of NaN if training failed."""
    name = f"{arm.name}_{digest_of(arm)}_seed_{seed}".replace(" ", "_").replace(",", "")
    output, done = folder / name, folder / f"{name}.json"
    if not done.exists():
        command = [sys.executable, "-m", "vit_ipu", "train", arm.config, "--device", arm.device]
        command += ["--numerics", arm.numerics] if arm.numerics else []
        command += ["--json", "--output", str(output), *(["--resume"] if (output / "checkpoints").is_dir() else [])]
        for key, value in dict(arm.settings, **{"run.seed": str(seed)}).items():
            command += ["--set", f"{key}={value}"]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if process.returncode not in (0, 1):  # 1: training failed, as a bad loss scale makes it
            sys.exit(f"{' '.join(command)}: {process.stderr.strip()[-500:]}")
        if process.returncode == 1:
            print(f"{arm.name}, seed {seed} failed: {process.stderr.strip()[-300:]}", file=sys.stderr)
        done.write_text(process.stdout if process.returncode == 0 else json.dumps({"top1": None}), encoding="utf-8")
    summary: Summary = json.loads(done.read_text(encoding="utf-8"))
    if summary["top1"] is None:
        summary["top1"] = float("nan")
    print(f"{arm.name}, seed {seed}: top-1 {summary['top1']:.2f} %", file=sys.stderr, flush=True)
    return summary


def digest_of(*settings: Any) -> str:
    """Returns eight letters that tell runs with other settings apart, so that their results are not taken for these."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def interval(differences: Sequence[float]) -> Tuple[float, float]:
    """Returns the mean, and half the width of its 95 % interval by Student's t."""
    count = len(differences)
    spread = statistics.stdev(differences) / count**0.5
    return statistics.mean(differences), float(scipy.stats.t.ppf(0.975, count - 1)) * spread


def top1_of(summary: Summary) -> str:
    return "failed" if summary["top1"] != summary["top1"] else f"{summary['top1']:.2f}"

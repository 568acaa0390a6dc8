"""Runs of `vit-ipu train` in separate processes, for comparisons: finished ones are kept, interrupted ones resumed."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import scipy.stats
import torch

from vit_ipu.config_file import dump_config, load_config
from vit_ipu.files import sha256_of, written_whole
from vit_ipu.weights.fetch import locate

PEER_LOOP = Path(__file__).with_name("peer_finetune.py")
Summary = Dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One of the ways to train that are compared: a config, a device, and settings that the arm changes.

    `peer` is a library that trains by the loop of peer_finetune.py instead of this program.
    """

    name: str
    config: str
    device: str
    numerics: Optional[str] = None
    settings: Dict[str, str] = field(default_factory=dict)
    peer: Optional[str] = None

    def command(self, seed: int, output: Path) -> List[str]:
        if self.peer is not None:
            command = [sys.executable, str(PEER_LOOP), self.peer, self.config]
            command += ["--device", self.device, "--seed", str(seed), "--set"]
            return command + [f"{key}={value}" for key, value in self.settings.items()]
        command = [sys.executable, "-m", "vit_ipu", "train", self.config, "--device", self.device]
        command += ["--numerics", self.numerics] if self.numerics else []
        command += ["--json", "--output", str(output)]
        if output.is_dir():
            command.append("--resume" if (output / "checkpoints").is_dir() else "--restart")
        for key, value in dict(self.settings, **{"run.seed": str(seed)}).items():
            command += ["--set", f"{key}={value}"]
        return command


def train_all(arms: Sequence[Arm], seeds: Sequence[int], folder: Path, *, jobs: int = 1) -> Dict[str, List[Summary]]:
    """Trains each arm with each seed, `jobs` at a time, and returns the summaries of each arm, in the seeds' order.

    The jobs are spread over the GPUs. All arms of a seed come before the next seed, so that pairs are complete if time
    runs out. Each summary has its seed. With `jobs` 0 nothing is trained: the summaries are those that are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    pairs = [(arm, seed) for seed in seeds for arm in arms]
    gpus = _Gpus(jobs)

    def train_pair(pair: Tuple[Arm, int]) -> Summary:
        with gpus.one() as environment:
            return train(*pair, folder, dict(environment, OMP_NUM_THREADS=str(threads)))

    if jobs == 0:
        pairs = [(arm, seed) for arm, seed in pairs if _paths(arm, seed, folder)[1].exists()]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        summaries = list(pool.map(train_pair, pairs))
    found: Dict[str, List[Summary]] = {arm.name: [] for arm, _ in pairs}
    for (arm, _), summary in zip(pairs, summaries):
        found[arm.name].append(summary)
    return found


class _Gpus:
    """The visible GPUs, each for as many of the jobs as any other."""

    def __init__(self, jobs: int) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        self._free: Any = Queue()  # of names; Python 3.8 has no Queue[str]
        for job in range(jobs if names else 0):
            self._free.put(names[job % len(names)])

    @contextmanager
    def one(self) -> Iterator[Dict[str, str]]:
        """Yields the environment of a job, which sees one GPU if there are any."""
        if self._free.empty():
            yield dict(os.environ)
            return
        name = self._free.get()
        try:
            yield dict(os.environ, CUDA_VISIBLE_DEVICES=name)
        finally:
            self._free.put(name)


def train(arm: Arm, seed: int, folder: Path, environment: Dict[str, str]) -> Summary:
    """Trains in a separate process and returns the summary, with a top-1 of NaN if training diverged.

    Any other failure, such as a full disk, ends the program: it says nothing about the arm.
    """
    output, done = _paths(arm, seed, folder)
    if not done.exists():
        command = arm.command(seed, output)
        process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        diverged = process.returncode == 1 and (output / "diverged.json").is_file()
        if process.returncode and not diverged:
            sys.exit(f"{' '.join(command)}: {process.stderr.strip()[-500:]}")
        if diverged:
            print(f"{arm.name}, seed {seed} failed: {process.stderr.strip()[-300:]}", file=sys.stderr)
        with written_whole(done) as partial:
            text = process.stdout if process.returncode == 0 else json.dumps({"top1": None})
            partial.write_text(text, encoding="utf-8")
    summary: Summary = dict(json.loads(done.read_text(encoding="utf-8")), seed=seed)
    if summary["top1"] is None:
        summary["top1"] = float("nan")
    print(f"{arm.name}, seed {seed}: top-1 {summary['top1']:.2f} %", file=sys.stderr, flush=True)
    return summary


def _paths(arm: Arm, seed: int, folder: Path) -> Tuple[Path, Path]:
    """Returns the folder of a run, and the file of its summary."""
    config = load_config(arm.config, [f"{key}={value}" for key, value in arm.settings.items()])
    weights = "" if config.model.init is None else sha256_of(locate(config.model.init).path)
    loop = "" if arm.peer is None else sha256_of(PEER_LOOP)
    name = f"{arm.name}_{digest_of(arm, dump_config(config), weights, loop)}_seed_{seed}".replace(" ", "_").replace(
        ",", ""
    )
    return folder / name, folder / f"{name}.json"


def digest_of(*settings: Any) -> str:
    """Returns eight letters that tell runs with other settings apart, so that their results are not taken for these."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def commits_of(summaries: Iterable[Summary]) -> List[str]:
    """Returns the commits of this program that made the runs, each once; kept runs may be of earlier ones."""
    paths = [Path(summary["run"]) / "environment.json" for summary in summaries if "run" in summary]
    return sorted({str(json.loads(path.read_text(encoding="utf-8"))["commit"]) for path in paths if path.is_file()})


def interval(differences: Sequence[float]) -> Tuple[float, float]:
    """Returns the mean, and half the width of its 95 % interval by Student's t."""
    count = len(differences)
    spread = statistics.stdev(differences) / count**0.5
    return statistics.mean(differences), float(scipy.stats.t.ppf(0.975, count - 1)) * spread


def top1_of(summary: Summary) -> str:
    return "failed" if summary["top1"] != summary["top1"] else f"{summary['top1']:.2f}"

"""A small run with checkpoints, removals and evaluations, and what must be equal after it was stopped and resumed."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from forked_runs import Ended, ForkedRuns
from helpers import write_config, write_image_folder

NUM_FAULTS = int(os.environ.get("FAULTS", "5"))
"""Number of killed runs, and of runs with a failing file operation."""
PRECISION = {"cpu": {}, "ipu-sim": {"compute": "float16", "stochastic_rounding": True}}


class StoppedRun:
    """A run in a folder, which is started, stopped somehow, and resumed."""

    def __init__(self, runs: ForkedRuns, folder: Path, device: str, numerics: str = "exact", workers: int = 0) -> None:
        folder.mkdir(parents=True)
        self.path = folder / "run"
        self.seconds = 0.0
        """How long the uninterrupted run took."""
        self._runs, self._folder = runs, folder
        write_image_folder(folder / "images", count=6)
        config = write_config(
            folder,
            model={"num_classes": 2, "dropout": 0.1, "drop_path": 0.1},
            data={
                "source": "imagefolder",
                "path": "images",
                "num_train": None,
                "num_eval": None,
                "num_workers": workers,
                "crop": "random_resized",
            },
            pipeline={"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
            precision=PRECISION[device],
            optim={"optimizer": "adamw", "learning_rate": 1e-3, "warmup_updates": 2},
            run={"updates": 6, "checkpoint_every": 2, "evaluate_every": 3, "keep_checkpoints": 2},
        )
        self._arguments = ["train", config, "--device", device, "--output", "run"]
        self._arguments += ["--numerics", numerics] if device == "ipu-sim" else []

    def start(self, *, resume: bool = False, **options: Any) -> int:
        return self._runs.start(self._folder, self._arguments + ["--resume"] * resume, **options)

    def wait(self, pid: int) -> Ended:
        return self._runs.wait(pid)

    def resume(self, **options: Any) -> Ended:
        """Resumes the run, or starts it if there is nothing to resume, as the error message says."""
        ended = self.wait(self.start(resume=True, **options))
        if ended.code == 2 and "start one without --resume" in ended.err:
            ended = self.wait(self.start(**options))
        return ended

    def has_begun(self) -> bool:
        """Tells whether there is something to resume."""
        return (self.path / "config.yaml").is_file()

    def files(self) -> List[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*"))

    def state(self) -> Dict[str, bytes]:
        """Returns the bytes of each file that must not depend on interruptions nor on the number of workers."""
        names = [name for name in self.files() if name.endswith((".safetensors", "state.json"))]
        return {name: (self.path / name).read_bytes() for name in names}

    def metrics(self) -> List[Dict[str, Any]]:
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]

    def is_locked(self) -> bool:
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def assert_equal_to(self, whole: StoppedRun) -> None:
        """Asserts that the run has ended as an uninterrupted one: same weights, same metrics, same files."""
        assert self.metrics() == whole.metrics()
        assert self.files() == whole.files()
        found, expected = self.state(), whole.state()
        assert [name for name in expected if found[name] != expected[name]] == []
        assert not self.is_locked()


class WholeRuns:
    """The uninterrupted runs that stopped runs are compared with; each is made when it is first needed."""

    def __init__(self, runs: ForkedRuns, folder: Path) -> None:
        self._runs, self._folder = runs, folder
        self._made: Dict[str, StoppedRun] = {}

    def of(self, device: str, numerics: str = "exact") -> StoppedRun:
        key = f"{device}-{numerics}"
        if key not in self._made:
            run = StoppedRun(self._runs, self._folder / key, device, numerics)
            start = time.monotonic()
            ended = run.wait(run.start(names=self._folder / key / "operations.json"))
            run.seconds = time.monotonic() - start
            assert ended.code == 0, ended.err
            self._made[key] = run
        return self._made[key]

    def operations(self, device: str = "cpu") -> List[str]:
        """Returns the names of the file operations of a whole run."""
        self.of(device)
        return json.loads((self._folder / f"{device}-exact" / "operations.json").read_text())


def one_clear_line(error: str, reason: Optional[str] = None) -> bool:
    """Tells whether stderr is one line of `vit-ipu` that names the reason."""
    return error.startswith("vit-ipu: ") and error.count("\n") == 1 and (reason is None or reason in error)

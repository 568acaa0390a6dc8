"""File operations that fail: the earlier checkpoint stays whole, one line says why, and the run can be resumed.

The environment variable FAULTS sets the number of whole runs with a failing operation; `make test-faults` runs 200.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from fault_runs import NUM_FAULTS, StoppedRun, one_clear_line
from file_operations import ERRORS, Fault, watched
from helpers import backend_for, equal_states, random_batch, tiny_config

from vit_ipu.cli.console import error_line
from vit_ipu.errors import CheckpointError, RunFailed
from vit_ipu.runs.checkpoint import Progress, load_checkpoint, remove_old_checkpoints, save_checkpoint
from vit_ipu.weights.native import ModelDescription, checkpoints_in

CONFIG = tiny_config(
    data={"num_train": 8, "num_eval": 8},
    pipeline={"global_batch_size": 8, "micro_batch_size": 2, "layers_per_ipu": [2, 2]},
    optim={"optimizer": "adamw"},
)
DESCRIPTION = ModelDescription.of_run(CONFIG, tuple("abcdefghij"), num_train=8)
REASONS = {kind: os.strerror(errno.EIO if kind == "EIO" else errno.ENOSPC) for kind in ERRORS}


def states_after_updates(count: int) -> List[Dict[str, Any]]:
    backend, states = backend_for(CONFIG, "cpu"), []
    for update in range(count):
        backend.train_step(random_batch(CONFIG, update), 1e-3)
        states.append(backend.state_dict())
    return states


def save(folder: Path, state: Dict[str, Any], update: int, *, keep: int) -> None:
    """Writes a checkpoint and removes old ones, as a run does."""
    progress = Progress(update, update, update * CONFIG.pipeline.samples_per_step)
    save_checkpoint(folder, state, progress, DESCRIPTION, device_kind="cpu")
    remove_old_checkpoints(folder, keep)


def newest_whole(folder: Path) -> Tuple[int, Dict[str, Any]]:
    """Returns the update and the state of the newest checkpoint that loads."""
    for path in reversed(checkpoints_in(folder)):
        try:
            state, progress = load_checkpoint(path, device_kind="cpu")
        except CheckpointError:
            continue
        return progress.update, state
    raise AssertionError("no checkpoint is whole")


@pytest.mark.parametrize("kind", ERRORS)
def test_every_failing_operation_of_a_checkpoint_leaves_the_earlier_one_whole(tmp_path, kind):
    states = states_after_updates(3)
    before = tmp_path / "before"
    before.mkdir()
    for update in (1, 2):
        save(before, states[update - 1], update, keep=2)
    expected = tmp_path / "expected"
    shutil.copytree(str(before), str(expected))
    with watched(expected) as operations:
        save(expected, states[2], 3, keep=2)
    assert len(operations.names) > 20
    for at, name in enumerate(operations.names):
        folder = tmp_path / f"{at}"
        shutil.copytree(str(before), str(folder))
        problem = ""
        with watched(folder, Fault(kind, at)) as failing:
            try:
                save(folder, states[2], 3, keep=2)
            except (OSError, RunFailed) as error:
                problem = error_line(error)
        assert failing.failed, name
        assert problem == "" or (REASONS[kind] in problem and "\n" not in problem), (name, problem)
        update, state = newest_whole(folder)
        assert equal_states(state, states[update - 1]), name
        assert update == 3 or (update == 2 and not any(path.name == "update-00000003" for path in folder.iterdir()))
        save(folder, states[2], 3, keep=2)
        assert contents(folder) == contents(expected), name
        shutil.rmtree(str(folder))


def contents(folder: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", range(NUM_FAULTS))
def test_a_run_with_a_failing_operation_is_told_and_resumes(forked_runs, whole_runs, tmp_path, number):
    """Fails operations of a run that are spread over the run; at 200 faults, each operation more than once."""
    whole, operations = whole_runs.of("cpu"), whole_runs.operations()
    at = (number * len(operations) // NUM_FAULTS + random.Random(number).randrange(3)) % len(operations)
    kind = ERRORS[number % len(ERRORS)]
    run = StoppedRun(forked_runs, tmp_path / "stopped", "cpu")
    ended = run.wait(run.start(fault=(kind, at)))
    if ended.code != 0:
        assert one_clear_line(ended.err, REASONS[kind]), (operations[at], ended)
        assert ended.code in (1, 2)
    resumed = run.resume()
    assert (resumed.code, resumed.err) == (0, ""), operations[at]
    run.assert_equal_to(whole)


def test_a_disk_without_room_for_a_checkpoint_ends_the_run_with_one_line(forked_runs, whole_runs, tmp_path):
    """The system refuses to let any file grow beyond 64 KiB, so that safetensors itself fails to write."""
    run = StoppedRun(forked_runs, tmp_path / "stopped", "cpu")
    ended = run.wait(run.start(largest_file=1 << 16))
    assert ended.code == 1
    assert one_clear_line(ended.err, os.strerror(errno.EFBIG))
    assert "model.safetensors" in ended.err
    assert not any(name.startswith("checkpoints/") for name in run.files())
    assert run.resume().code == 0
    run.assert_equal_to(whole_runs.of("cpu"))

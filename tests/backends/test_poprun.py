"""Several instances of one run, as poprun starts them, over the simulator: they stop, fail and report together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import write_config

from vit_ipu.runs.metrics import read_metrics

# Trains in every instance. The last argument names what happens in the second instance alone.
PROGRAM = """
import json, os, signal, sys
import popdist, torch
from pathlib import Path
from importlib import import_module
from vit_ipu.backends.build import resolve_device
from vit_ipu.backends.ipu.executor import IpuBackend
from vit_ipu.config_file import load_config
from vit_ipu.errors import RunFailed

train = import_module("vit_ipu.train")
event = sys.argv[2]
config, device = load_config(sys.argv[1]), resolve_device("ipu-sim")
original, steps = IpuBackend.train_step, []

def train_step(self, batch, rate):
    if self.instances.index == 1 and len(steps) == 1:
        if event == "stop":
            os.kill(os.getpid(), signal.SIGINT)
        if event == "nan":
            with torch.no_grad():
                self._training_step.model.head.bias.fill_(float("nan"))
            self._training.copyWeightsToDevice()
    steps.append(original(self, batch, rate))
    return steps[-1]

IpuBackend.train_step = train_step
outcome = "ended"
with train.open_run_folder(Path("run" + os.environ["POPDIST_REPLICA_INDEX_OFFSET"]), config, resume=False) as folder:
    try:
        summary = train.train(config, device, folder)
        outcome = "interrupted" if summary.interrupted else "ended"
    except RunFailed as error:
        outcome = "failed: " + str(error)[:15]
sys.stdout.write(json.dumps([outcome, [step.loss for step in steps]]) + "\\n")
sys.stdout.flush()
"""


def run_two_instances(folder, event):
    config = write_config(
        folder,
        pipeline={"global_batch_size": 64, "replication_factor": 2},
        run={"updates": 4, "evaluate_every": 4},
    )
    (folder / "program.py").write_text(PROGRAM)
    done = launch(folder, "program.py", str(config), event)
    return [json.loads(line) for line in done.stdout.splitlines()]


def launch(folder, *program):
    command = [sys.executable, "-m", "vit_ipu.simulator", "--num-instances", "2", "--num-replicas", "2"]
    command += ["--ipus-per-replica", "4", *program]
    done = subprocess.run(command, cwd=str(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("event", "outcome", "num_steps"),
    [("none", "ended", 4), ("stop", "interrupted", 2), ("nan", "failed: the loss is nan", 2)],
)
def test_instances_end_together_with_the_same_losses(empty_folder, event, outcome, num_steps):
    first, second = run_two_instances(empty_folder, event)
    assert first[0] == second[0] == outcome
    assert len(first[1]) == len(second[1]) == num_steps
    assert first[1][0] == second[1][0]  # the mean over all samples, not over the instance's own


def test_overflows_are_those_of_all_instances(empty_folder):
    sections = {"precision": {"compute": "float16", "loss_scale": 1e6}, "run": {"updates": 2}}
    counts = {}
    for name, pipeline in (("one", {}), ("two", {"replication_factor": 2})):
        config = write_config(empty_folder, name, pipeline={"global_batch_size": 64, **pipeline}, **sections)
        command = ["-m", "vit_ipu", "train", config, "--device", "ipu-sim", "--numerics", "ipu", "--output", name]
        if name == "two":
            launch(empty_folder, *command)
        else:
            subprocess.run([sys.executable, *command], cwd=str(empty_folder), check=True, capture_output=True)
        lines = read_metrics(empty_folder / name / "metrics.jsonl")
        counts[name] = [line["overflows"] for line in lines if "loss" in line]
    assert counts["two"][0] == counts["one"][0] > 0  # the same samples and weights, over two instances


def test_the_command_trains_in_both_instances_and_the_first_writes(empty_folder):
    config = write_config(
        empty_folder,
        pipeline={"global_batch_size": 64, "replication_factor": 2},
        run={"updates": 2, "evaluate_every": 2},
    )
    command = ["-m", "vit_ipu", "train", str(config), "--device", "ipu-sim", "--output", "run"]
    done = launch(empty_folder, *command)
    assert done.stdout.count("update 2: top-1") == 1
    assert [line["update"] for line in read_metrics(empty_folder / "run" / "metrics.jsonl")] == [1, 2, 2]
    assert (empty_folder / "run" / "report.html").is_file()

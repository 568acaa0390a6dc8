"""Several processes on CPUs, as torchrun starts them, train and evaluate as one process does."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import backend_for, relative_errors, tiny_config, vit_ipu, write_config
from safetensors.torch import load_file

from vit_ipu.backends.build import require_one_process, resolve_device
from vit_ipu.backends.contract import Instances
from vit_ipu.backends.native import distributed
from vit_ipu.backends.native.micro_batches import first_size, merged_sizes
from vit_ipu.config_file import load_config
from vit_ipu.data.loading.loader import EvaluationLoader
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import ConfigError, DeviceError, RunFailed
from vit_ipu.pipeline import BatchPlan
from vit_ipu.runs.metrics import read_metrics

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

# Kills its second process after some updates.
KILLED = """
import os, signal, sys
from vit_ipu.backends.native.backend import NativeBackend
from vit_ipu.__main__ import main
original, steps = NativeBackend.train_step, []
def train_step(self, batch, rate):
    steps.append(original(self, batch, rate))
    if self.instances.index == 1 and len(steps) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return steps[-1]
NativeBackend.train_step = train_step
main()
"""


def launch(folder, processes, *arguments, program=("-m", "vit_ipu")):
    # --standalone of torch 2.0 always takes port 29400, which another test may hold
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(processes)]
    command = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", *meeting]
    return subprocess.run(
        [*command, *program, *arguments], cwd=str(folder), capture_output=True, text=True, timeout=200, check=False
    )


def train(folder, processes, config, output, *options, **how):
    done = launch(folder, processes, "train", config, "--device", "cpu", "--output", output, *options, **how)
    return done, folder / output


def config_of(folder, **sections):
    pipeline = {"global_batch_size": 48, "micro_batch_size": 4, **sections.pop("pipeline", {})}
    data = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_eval": 700, **sections.pop("data", {})}
    run = {"updates": 4, "evaluate_every": 2, "checkpoint_every": 1, "log_every": 1, **sections.pop("run", {})}
    optim = {"max_grad_norm": 1.0, **sections.pop("optim", {})}
    return write_config(folder, pipeline=pipeline, data=data, run=run, optim=optim, **sections)


def weights_of(run):
    return load_file(str(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors"))


def assert_same_run(found, expected):
    errors = relative_errors(weights_of(found), weights_of(expected), leave_out_key_bias=True)
    assert max(errors.values()) < 2e-5, errors
    lines, wanted = (read_metrics(run / "metrics.jsonl") for run in (found, expected))
    assert [line["update"] for line in lines] == [line["update"] for line in wanted]
    for line, other in zip(lines, wanted):
        for key in {"loss", "learning_rate", "evaluation_loss", "top1"} & set(other):
            assert line[key] == pytest.approx(other[key], rel=1e-4, abs=0.2 if key == "top1" else 0), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = config_of(folder)
    done, run = train(folder, 1, config, "run")
    assert done.returncode == 0, done.stderr
    return config, run


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_and_evaluate_as_one(tmp_path, whole, processes):
    config, expected = whole
    done, run = train(tmp_path, processes, config, "run")
    assert done.returncode == 0, done.stderr
    assert_same_run(run, expected)
    assert "vit-ipu:" not in done.stderr
    assert done.stdout.count("update 2: top-1") == 1
    assert "on 700 held-out images" in done.stdout
    facts = json.loads((run / "environment.json").read_text())
    assert facts["hardware"].startswith(f"{processes} x CPU")
    searched = json.loads((run / "evaluation.json").read_text())["num_searched"]
    assert 0 < searched < 700
    of_first = f"those among the {searched:,} images that the first process of torchrun evaluated, of 700 in all"
    assert of_first in (run / "report.html").read_text()


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_the_gradients_of_a_working_copy(tmp_path, processes):
    """In bfloat16, one process and several make the same passes, whose gradients are added up in float32."""
    config = config_of(
        tmp_path,
        pipeline={"native_micro_batch_size": 8},
        precision={"compute": "bfloat16"},
        optim={"freeze": ["blocks.1"], "ema_decay": 0.5},
        run={"evaluate_every": None, "checkpoint_every": None},
    )
    (_, alone), (done, shared) = train(tmp_path, 1, config, "alone"), train(tmp_path, processes, config, "shared")
    assert done.returncode == 0, done.stderr
    start = backend_for(load_config(config), "cpu").state_dict()["model"]
    ours, expected = weights_of(shared), weights_of(alone)
    moved = {name: (expected[name] - start[name]).norm() for name in start}
    error = torch.stack([(ours[name] - expected[name]).norm() for name in start]).norm()
    # The loss of a pass is scaled in bfloat16, by a power of two of one process's scale only if there are two.
    assert error < {2: 1e-3, 3: 2e-2}[processes] * torch.stack(list(moved.values())).norm()
    assert sum(value == 0 for value in moved.values()) == 12  # the frozen block


def test_class_weights_and_balanced_sampling_are_those_of_one_process(tmp_path):
    features = {"data": {"sampling": "balanced"}, "optim": {"class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}
    runs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        done, run = train(folder, processes, config_of(folder, **features), "run")
        assert done.returncode == 0, done.stderr
        runs.append(run)
    assert_same_run(runs[1], runs[0])


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_that_lost_a_process_ends_and_continues_with_another_number(tmp_path, whole, processes):
    config, expected = whole
    (tmp_path / "killed.py").write_text(KILLED)
    began = time.monotonic()
    done, run = train(tmp_path, 2, config, "run", program=("killed.py",))
    assert done.returncode != 0
    assert time.monotonic() - began < 60  # with the start of the processes
    assert "vit-ipu: process 0 of 2 stops, because another one has ended: see the message of that one" in done.stderr
    assert 1 <= len(list((run / "checkpoints").iterdir())) <= 3
    done, run = train(tmp_path, processes, config, "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(run, expected)


def test_evaluate_shares_out_the_images_and_prints_once(tmp_path, whole, monkeypatch, capsys):
    config, run = whole
    command = ["evaluate", config, "--checkpoint", str(run), "--device", "cpu", "--json"]
    done = launch(tmp_path, 2, *command)
    assert done.returncode == 0, done.stderr
    code, out, err = vit_ipu(monkeypatch, capsys, *command)
    assert code == 0, err
    found, expected = json.loads(done.stdout), json.loads(out)
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-6)
    assert found == expected


def test_draws_of_dropout_differ_between_processes_and_resume(tmp_path):
    config = config_of(tmp_path, model={"dropout": 0.3}, run={"evaluate_every": None})
    first, whole_run = train(tmp_path, 2, config, "whole")
    assert first.returncode == 0, first.stderr
    (tmp_path / "killed.py").write_text(KILLED)
    _, run = train(tmp_path, 2, config, "run", program=("killed.py",))
    second, _ = train(tmp_path, 2, config, "run", "--resume")
    assert second.returncode == 0, second.stderr
    for name, tensor in weights_of(whole_run).items():
        assert torch.equal(tensor, weights_of(run)[name]), name


def test_processes_that_cannot_share_an_update_are_told_once(tmp_path):
    done, run = train(tmp_path, 2, config_of(tmp_path, pipeline={"micro_batch_size": 16}), "run")
    assert [line for line in done.stderr.splitlines() if line.startswith("vit-ipu:")] == [
        "vit-ipu: an update has 3 micro-batches (global batch 48 = micro-batch 16 x accumulation 3 x replicas 1), "
        "which 2 processes of torchrun cannot share evenly: change --nproc-per-node, or pipeline.micro_batch_size"
    ]
    assert not run.exists()


# ------------------------------------------------------------------------------------------ parts


def test_every_micro_batch_of_an_update_belongs_to_one_process():
    plan = BatchPlan(micro_batch_size=2, gradient_accumulation=3, replication_factor=2, device_iterations=2)
    parts = [plan.share_of_micro_batches(process, 3) for process in range(3)]
    assert parts[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert sorted(np.concatenate(parts).tolist()) == list(range(24))


def test_parts_of_an_evaluation_have_every_image_once_and_equally_many_batches(monkeypatch):
    monkeypatch.setattr("vit_ipu.data.loading.loader.CHUNK", 16)
    config = tiny_config(data={"num_eval": 50})
    source = open_source(config.data, config.model, "eval")
    expected = torch.cat([batch.labels for batch in EvaluationLoader(source, config)])
    for count in (1, 2, 3, 4, 7):
        parts = [list(EvaluationLoader(source, config, part=(index, count))) for index in range(count)]
        assert len({len(part) for part in parts}) == 1
        in_order = [part[number].labels for number in range(len(parts[0])) for part in parts]
        assert torch.equal(torch.cat(in_order), expected)
        assert all(batch.images.shape[1:] == (3, 28, 28) for part in parts for batch in part)


@pytest.fixture
def under_torchrun(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", None), ("RANK", "2"), ("RANK", "x"), ("LOCAL_RANK", "-1"), ("MASTER_ADDR", ""), ("MASTER_PORT", None)],
)
def test_incomplete_variables_are_named(under_torchrun, name, value):
    under_torchrun.delenv(name) if value is None else under_torchrun.setenv(name, value)
    message = f"WORLD_SIZE is 2, but {name} is {value or 'not set'}: start several processes with torchrun"
    with pytest.raises(DeviceError, match=message):
        resolve_device("cpu")


@pytest.mark.parametrize("value", ["", "0", "1", "many", "9" * 5000, "²"])
def test_one_process_needs_no_other_variables(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert distributed.num_processes() == 1
    assert distributed.instances("cpu").count == 1


def test_several_processes_are_for_gpus_and_cpus_and_not_for_predictions(under_torchrun):
    assert resolve_device("ipu-sim").simulated  # a scheduler sets these variables, too
    under_torchrun.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(DeviceError, match="--device ipu-sim: torchrun starts several processes for GPUs or CPUs only"):
        resolve_device("ipu-sim")
    with pytest.raises(DeviceError, match="predict runs in one process: start it without torchrun"):
        require_one_process("predict")


def test_more_processes_than_gpus_are_refused(under_torchrun):
    under_torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    under_torchrun.setenv("LOCAL_RANK", "1")
    with pytest.raises(DeviceError, match="has started 2 or more processes on a host with 1 GPU: use"):
        distributed.local_device("cuda")


def test_processes_that_cannot_be_joined_are_named(under_torchrun):
    under_torchrun.setattr(torch.distributed, "init_process_group", fail("the socket timed out\nmore"))
    distributed._joined.cache_clear()
    with pytest.raises(DeviceError, match="cannot join torchrun's processes at 127.0.0.1:1: the socket timed out$"):
        distributed.instances("cpu")


def fail(text):
    def call(*arguments, **options):
        raise RuntimeError(text)

    return call


def test_only_the_loss_of_a_process_is_reported_as_such(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    for text in ("[pair.cc:534] Connection closed by peer [127.0.0.1]:1", "NCCL watchdog"):
        with pytest.raises(RunFailed, match="process 1 of 4 stops, because another one has ended"):
            with distributed.lost_processes_reported():
                fail(text)()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), distributed.lost_processes_reported():
        fail("shapes cannot be multiplied")()


def test_one_of_several_processes_does_not_try_smaller_micro_batches_alone(monkeypatch):
    backend = backend_for(tiny_config(), "cpu")
    monkeypatch.setattr(backend, "instances", Instances(0, 2, are_replicas=False))
    with pytest.raises(RunFailed, match="cpu: out of memory with micro-batches of 32 images: set pipeline.native_mi"):
        backend._lower_micro_batch_size(torch.cuda.OutOfMemoryError())


def test_merged_micro_batches_divide_a_process_s_part():
    config = tiny_config(pipeline={"global_batch_size": 48, "micro_batch_size": 4})
    assert merged_sizes(config.pipeline, 2) == [4, 8, 12, 24]
    assert merged_sizes(config.pipeline, 5) == [4]
    chosen = tiny_config(pipeline={"global_batch_size": 48, "micro_batch_size": 4, "native_micro_batch_size": 48})
    assert first_size(chosen, torch.device("cpu")) == 48
    with pytest.raises(ConfigError, match="native_micro_batch_size 48 does not divide 24, the images"):
        first_size(chosen, torch.device("cpu"), 2)

"""Programs that run on the simulator: start, child processes, and the instances that poprun would start."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.__main__ import main as simulator_main
from vit_ipu.simulator.installation.poprun import environment_of, run_instances

REPOSITORY = Path(__file__).resolve().parents[2]


def simulate(*arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python -m vit_ipu.simulator ARGUMENTS` in a folder, with the repository in PYTHONPATH."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "vit_ipu.simulator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=str(folder), env=environment, input=stdin, check=False
    )


PROGRAM = """
import multiprocessing, subprocess, sys
import helper  # beside the script
import poptorch

CHILD = (
    "import horovod.torch, popart, poptorch.optim, poptorch\\n"
    "print(poptorch.__simulated__, poptorch.ipuHardwareIsAvailable(8))\\n"
    "from vit_ipu.backends.ipu.availability import ipu_problem; print(ipu_problem())"
)

def in_child(queue):
    queue.put([poptorch.__simulated__, poptorch.ipuHardwareIsAvailable(4), poptorch.ipuHardwareIsAvailable(8)])

class Mine:
    pass

if __name__ == "__main__":
    print(sys.argv, sys.path[0] == helper.FOLDER, sys.modules["__main__"].Mine is Mine, __file__)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=in_child, args=(queue,))
    process.start()
    print(queue.get(timeout=100))
    process.join()
    print(subprocess.run([sys.executable, "-"], input=CHILD, stdout=subprocess.PIPE, text=True).stdout.strip())
    sys.exit(3)
"""


def test_a_script_runs_as_python_would_run_it_and_its_children_find_the_simulator(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "helper.py").write_text("import os\nFOLDER = os.path.dirname(os.path.realpath(__file__))\n")
    (scripts / "program.py").write_text(PROGRAM)
    done = simulate("--ipus", "4", "scripts/program.py", "--a", "-m", folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == [
        "['scripts/program.py', '--a', '-m'] True True scripts/program.py",
        "[True, True, False]",
        "True False",
        # A vit_ipu that a simulated program starts does not take the simulator for hardware either.
        "the PopTorch in this process is the simulator, not hardware: use --device ipu-sim",
    ]


def test_a_script_that_fails_exits_with_1_and_no_hardware_hides_the_ipus(tmp_path):
    (tmp_path / "program.py").write_text(
        "import poptorch\nprint(poptorch.ipuHardwareIsAvailable())\nraise ValueError('wrong')\n"
    )
    done = simulate("--no-hardware", "program.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr.splitlines()[-1] == "ValueError: wrong"


def test_pytest_runs_as_a_module(tmp_path):
    (tmp_path / "test_program.py").write_text(
        "import poptorch\n\n\ndef test_it():\n    assert poptorch.ipuHardwareIsAvailable(2)\n"
        "    assert not poptorch.ipuHardwareIsAvailable(4)\n    from vit_ipu.simulator.arithmetic import mode\n"
        "    assert mode.chosen().mode == 'ipu'\n"
    )
    done = simulate("--ipus", "2", "--numerics", "ipu", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=tmp_path)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout


def test_vit_ipu_does_not_take_the_simulator_for_hardware(tmp_path):
    done = simulate("-m", "vit_ipu", "train", "quickstart", "--device", "ipu", folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is the simulator, not hardware: use --device ipu-sim" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m"], "-m needs a MODULE"),
        (["--num-instances", "0", "x.py"], "--num-instances 0: give at least 1"),
        (
            ["--num-instances", "2", "--num-replicas", "3", "x.py"],
            "--num-replicas 3 do not divide over --num-instances 2",
        ),
        (["--num-replicas", "0", "x.py"], "--num-replicas 0 do not divide over --num-instances 1"),
        (["--ipus-per-replica", "0", "x.py"], "--ipus-per-replica 0: give at least 1"),
        (["--numerics", "half", "x.py"], "invalid choice: 'half'"),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_message(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        simulator_main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------- instances


INSTANCES = """
import sys, torch
import horovod.torch as hvd
import popdist, popdist.poptorch, poptorch
from vit_ipu.simulator import instances
popdist.init()
hvd.init()
index = popdist.getInstanceIndex()
half = torch.full((2,), float(index), dtype=torch.float16)
instances.all_reduce([half], mean=True)
popdist.synchronize()

def alone(value):
    tensor = torch.tensor([value])
    instances.all_reduce([tensor])
    return tensor.item()

result = popdist.execute_on_instances({1}, alone, float(index))

own = {"a": torch.tensor([float(index)]), "b": torch.tensor([index, index])}
values = [
    hvd.size(), hvd.rank(), hvd.local_rank(),
    hvd.allreduce(own["a"]).item(), hvd.allreduce(own["a"], average=False).item(),
    hvd.allgather(own["a"].repeat(index + 1)).tolist(),
    hvd.broadcast(own["b"], 1).tolist(), hvd.broadcast_object(index),
]
hvd.broadcast_parameters(own, root_rank=1)
values += [own["a"].item(), own["b"].tolist()]

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x):
        return poptorch.identity_loss(self.layer(x).square(), "mean")

x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
weights = []
for reduction in (poptorch.ReductionType.Mean, poptorch.ReductionType.Sum):
    torch.manual_seed(0)
    model = Model()
    options = popdist.poptorch.Options(ipus_per_replica=1)
    options.Training.gradientAccumulation(2).accumulationAndReplicationReductionType(reduction)
    step = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    step(x.chunk(popdist.getNumInstances())[index])
    weights.append(model.layer.weight.flatten().tolist())
sys.stdout.write(repr([index, half.tolist(), result, options.replication_factor, weights, values]) + "\\n")
sys.stdout.flush()
"""


def test_two_instances_train_as_one_process_would(tmp_path):
    (tmp_path / "program.py").write_text(INSTANCES)
    done = simulate("--num-instances", "2", "--num-replicas", "4", "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    instances = [ast.literal_eval(line) for line in sorted(done.stdout.splitlines())]
    assert [line[:4] for line in instances] == [[0, [0.5, 0.5], None, 2], [1, [0.5, 0.5], 1.0, 2]]
    for index, line in enumerate(instances):
        assert line[5] == [2, index, index, 0.5, 1.0, [0.0, 1.0, 1.0], [1, 1], 0, 1.0, [1, 1]]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for number, samples_per_loss in enumerate((8, 1)):  # the mean of 8 losses of one sample each, or their sum
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        (layer(x).square().mean(1).sum() / samples_per_loss).backward()
        expected = (layer.weight - 0.1 * layer.weight.grad).flatten()
        for line in instances:
            torch.testing.assert_close(torch.tensor(line[4][number]), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--num-replicas", "2", "--ipus-per-replica", "4"], [True, 1, 2, 4]),
        (["--num-instances", "1"], [True, 1, 1, 1]),
        ([], [False, 1, 1, 1]),
    ],
)
def test_one_instance_has_the_replicas_of_the_command_line(tmp_path, arguments, expected):
    (tmp_path / "program.py").write_text(
        "import popdist, popdist.poptorch\n"
        "options = popdist.poptorch.Options()\n"
        "print([popdist.isPopdistEnvSet(), popdist.getNumInstances(), options.replication_factor,\n"
        "       popdist.getNumIpusPerReplica()])\n"
    )
    done = simulate(*arguments, "program.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


def test_training_in_processes_that_poprun_did_not_start_is_refused(monkeypatch):
    model = torch.nn.Linear(2, 2)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return poptorch.identity_loss(self.model(x), "mean")

    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(NotImplementedError, match="training in 2 processes that poprun did not start is not simulated"):
        poptorch.trainingModel(Loss(), options)(torch.ones(1, 2))


def test_the_first_instance_that_fails_ends_the_others():
    code = "import os, sys, time\nsys.exit(7) if os.environ['POPDIST_LOCAL_INSTANCE_INDEX'] == '1' else time.sleep(60)"
    assert run_instances([sys.executable, "-c", code], instances=3) == 7
    assert run_instances([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], instances=1) == 128 + 9


def test_replicas_must_divide_over_the_instances():
    with pytest.raises(ValueError, match="--num-replicas 1 do not divide over --num-instances 2: give a multiple"):
        environment_of(0, instances=2, replicas=1, ipus_per_replica=1, port=0)

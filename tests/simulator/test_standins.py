"""Programs that run on the simulator: start, child processes, and the stand-ins for popart, popdist and horovod."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import instances
from vit_ipu.simulator.__main__ import main as simulator_main
from vit_ipu.simulator.installation.poprun import environment_of, run_instances
from vit_ipu.simulator.installation.standins import horovod_torch, popart, popdist, popdist_poptorch

REPOSITORY = Path(__file__).resolve().parents[2]


def simulate(*arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python -m vit_ipu.simulator ARGUMENTS` in a folder, with the repository in PYTHONPATH."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "vit_ipu.simulator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=str(folder), env=environment, input=stdin, check=False
    )


# -------------------------------------------------------------------------------------- programs

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


# ---------------------------------------------------------------------------------------- popart


def test_popart_enums_have_the_numbers_that_poptorch_accepts():
    table = json.loads((Path(poptorch.__file__).parent / "tables" / "session_options.json").read_text())["enums"]
    renamed = {"RecomputationType": {"None": "NoRecompute"}, "MergeVarUpdateType": {"None": "Off"}}
    for name, members in table.items():
        for member, value in members.items():
            if member != "N":
                found = getattr(getattr(popart, name), renamed.get(name, {}).get(member, member))
                assert int(found) == value
    assert int(popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized) == 3
    assert popart.BatchSerializationTransformContext.Forward is popart.BatchSerializationTransformContext.Fwd


def test_a_popart_enum_must_become_a_number_first():
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    options._Popart.set("autoRecomputation", popart.RecomputationType.Standard)
    with pytest.raises(poptorch.Error, match="Unknown value type .*RecomputationType.* for option autoRecomputation"):
        poptorch.poptorch_core._validateOptions(options.toDict())
    options._Popart.set("autoRecomputation", int(popart.RecomputationType.Standard))
    poptorch.poptorch_core._validateOptions(options.toDict())


def test_the_rest_of_popart_is_not_simulated():
    with pytest.raises(NotImplementedError, match="popart.Builder is not simulated"):
        popart.Builder  # noqa: B018
    with pytest.raises(AttributeError, match="module 'popart' has no attribute '_nonsense'"):
        popart._nonsense  # noqa: B018
    assert not hasattr(popart, "Builder")
    assert popart.versionString() == popart.__version__ == "3.4.0+simulated"


def test_the_rest_of_horovod_is_not_simulated():
    with pytest.raises(NotImplementedError, match="horovod.torch.DistributedOptimizer is not simulated"):
        horovod_torch.DistributedOptimizer  # noqa: B018
    with pytest.raises(AttributeError, match="module 'horovod.torch' has no attribute '_nonsense'"):
        horovod_torch._nonsense  # noqa: B018


@pytest.mark.parametrize("module", [popart, popdist, popdist_poptorch, horovod_torch, poptorch])
def test_a_program_may_ask_a_stand_in_for_features_that_it_lacks(module):
    assert not hasattr(module, "NoSuchFeature")
    assert getattr(module, "NoSuchFeature", None) is None


@pytest.mark.parametrize("name", ["popart", "popdist", "popdist.poptorch", "horovod", "horovod.torch"])
def test_an_import_of_a_feature_that_a_stand_in_lacks_names_the_simulator(name):
    poptorch.install()
    message = f"{name}.Feature is not simulated: vit_ipu.simulator stands in for {name} and lacks Feature"
    with pytest.raises(ImportError, match=message) as caught:
        exec(f"import os\nfrom {name} import Feature")
    assert caught.value.name == name
    with pytest.raises(ImportError, match=message):
        exec(f"def later():\n    from {name} import Feature as feature\nlater()")


def test_an_import_of_a_name_that_poptorch_lacks_names_the_file():
    poptorch.install()
    with pytest.raises(ImportError, match=r"cannot import name 'Feature' from 'poptorch' \(.*simulator.module.py\)"):
        exec("from poptorch import Feature")


def test_install_makes_the_stand_ins_importable():
    poptorch.install()
    found = importlib.import_module("popart")
    assert found.RecomputationType is popart.RecomputationType
    assert importlib.util.find_spec("popdist.poptorch").name == "popdist.poptorch"
    assert importlib.import_module("popdist").poptorch.Options is popdist_poptorch.Options


# --------------------------------------------------------------------------------------- popdist


@pytest.fixture
def instance(monkeypatch):
    """Returns a function that sets poprun's environment variables, which make this process an instance."""

    def make(index: int, **how: int) -> None:
        for name, value in environment_of(index, port=0, **how).items():
            monkeypatch.setenv(name, value)

    return make


def test_without_poprun_there_is_one_instance():
    assert not popdist.isPopdistEnvSet()
    assert [popdist.getNumInstances(), popdist.getInstanceIndex(), popdist.getLocalInstanceIndex()] == [1, 0, 0]
    assert [popdist.getNumTotalReplicas(), popdist.getNumLocalReplicas(), popdist.getNumIpusPerReplica()] == [1, 1, 1]
    assert popdist.getDeviceId() == 0
    assert popdist.execute_on_instances({0}, max, 1, 2) == 2
    assert popdist.execute_on_instances({1}, max, 1, 2) is None
    tensor = torch.ones(2)
    instances.all_reduce([tensor])
    popdist.synchronize()
    assert torch.equal(tensor, torch.ones(2))


def test_horovod_in_one_process_returns_copies_and_refuses_the_rest():
    tensor = torch.ones(2)
    for out in (horovod_torch.allreduce(tensor), horovod_torch.broadcast(tensor, 0), horovod_torch.allgather(tensor)):
        assert torch.equal(out, tensor)
        assert out is not tensor
    assert (horovod_torch.size(), horovod_torch.local_size(), horovod_torch.broadcast_object("x")) == (1, 1, "x")
    with pytest.raises(NotImplementedError, match=r"horovod.torch.allreduce\(op='Min'\) is not simulated"):
        horovod_torch.allreduce(tensor, op="Min")
    with pytest.raises(NotImplementedError, match="horovod.torch.DistributedOptimizer is not simulated"):
        horovod_torch.DistributedOptimizer  # noqa: B018


def test_an_installed_horovod_is_not_replaced(tmp_path):
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("real = True\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vit_ipu.simulator as s; s.install()\nimport horovod; print(horovod.real)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_popdist_is_initialised_once():
    assert not popdist.isBackendInitialized()
    popdist.init()
    assert popdist.isBackendInitialized()
    with pytest.raises(RuntimeError, match=r"popdist.init\(\) was called before"):
        popdist.init()
    popdist.finalizeBackend()
    assert not popdist.isBackendInitialized()


def test_an_instance_knows_its_share(instance):
    instance(1, instances=2, replicas=8, ipus_per_replica=4)
    assert popdist.isPopdistEnvSet()
    assert [popdist.getNumInstances(), popdist.getInstanceIndex(), popdist.getLocalInstanceIndex()] == [2, 1, 1]
    assert [popdist.getNumTotalReplicas(), popdist.getNumLocalReplicas(), popdist.getNumIpusPerReplica()] == [8, 4, 4]
    assert popdist.getReplicaIndexOffset() == 4
    assert popdist.checkNumIpusPerReplica(4)
    assert not popdist.checkNumIpusPerReplica(2)
    options = popdist_poptorch.Options(ipus_per_replica=4).outputMode(poptorch.OutputMode.All)
    assert options.replication_factor == popdist_poptorch.Options().replication_factor == 4
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    written = options.clone().toDict()
    assert (written["globalReplicationFactor"], written["globalReplicaOffset"]) == (8, 4)
    poptorch.poptorch_core._validateOptions(written)
    with pytest.raises(ValueError, match="4 IPUs per replica but popdist.poptorch.Options was given 2"):
        popdist_poptorch.Options(ipus_per_replica=2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("useIpuId", (1,)),
        ("replicationFactor", (1,)),
        ("Distributed.disable", ()),
        ("Distributed.setEnvVarNames", ("A", "B")),
        ("Distributed.configureProcessId", (0, 1)),
    ],
)
def test_options_that_popdist_sets_cannot_be_changed(name, arguments):
    setter = popdist_poptorch.Options(ipus_per_replica=2)
    for part in name.split("."):
        setter = getattr(setter, part)
    with pytest.raises(RuntimeError, match=f"Cannot call `{name}` with popdist.poptorch.Options"):
        setter(*arguments)


def test_popdist_options_stay_frozen_when_they_are_written():
    options = popdist_poptorch.Options(ipus_per_replica=2).outputMode(poptorch.OutputMode.All)
    options.toDict()
    options.checkIsFrozen()
    options._freeze()
    options.toDict()
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(2)


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

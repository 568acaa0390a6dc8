"""The stand-ins for popart, popdist and horovod."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import instances
from vit_ipu.simulator.installation.poprun import environment_of
from vit_ipu.simulator.installation.standins import horovod_torch, popart, popdist, popdist_poptorch

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

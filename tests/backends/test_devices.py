"""The device that a name selects, and the instance of poprun that a process is."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from helpers import random_batch, random_images, tiny_config

from vit_ipu import simulator
from vit_ipu.backends import build
from vit_ipu.backends.build import NUMERICS, build_backend, find_instances, resolve_device
from vit_ipu.errors import ConfigError, DeviceError
from vit_ipu.simulator.arithmetic.mode import MODES

pytestmark = pytest.mark.usefixtures("ipu")


class Popdist(types.ModuleType):
    """PopDist for one of several instances, as its documentation describes it."""

    def __init__(self, index, count, total):
        super().__init__("popdist")
        self.initialised = False
        self.isPopdistEnvSet = lambda: True
        self.isBackendInitialized = lambda: self.initialised
        self.getNumIpusPerReplica = lambda: 4
        self.getNumTotalReplicas = lambda: total
        self.getInstanceIndex = lambda: index
        self.getNumInstances = lambda: count
        self.poptorch = types.ModuleType("popdist.poptorch")
        local = total // count

        class Options(simulator.Options):
            def __init__(self, ipus_per_replica):
                super().__init__()
                self.set(replication_factor=local)
                self.__dict__["_ipus_per_replica"] = ipus_per_replica

            def replicationFactor(self, replication_factor):
                raise RuntimeError("Cannot call `replicationFactor` with popdist.poptorch.Options")

        self.poptorch.Options = Options
        self.__spec__ = types.SimpleNamespace(name="popdist")

    def init(self):
        assert not self.initialised, "You cannot initialise an already initialised backend"
        self.initialised = True


@pytest.fixture
def poprun(monkeypatch):
    def start(index, count, total):
        module = Popdist(index, count, total)
        monkeypatch.setitem(sys.modules, "popdist", module)
        monkeypatch.setitem(sys.modules, "popdist.poptorch", module.poptorch)
        return module

    return start


def replicated():
    return tiny_config(pipeline={"global_batch_size": 64, "replication_factor": 2})


def test_under_poprun_each_instance_has_its_share(ipu, poprun):
    module = poprun(1, 2, 2)
    config = replicated()
    backend = build_backend(config, resolve_device("ipu-sim"))
    assert module.initialised
    assert (backend.instances.index, backend.instances.count) == (1, 2)
    options = ipu.options.training_options(config)
    assert (options.replication_factor, options._ipus_per_replica) == (1, 4)
    whole = random_batch(config)
    from vit_ipu.backends.contract import HostBatch
    from vit_ipu.pipeline import BatchPlan

    share = BatchPlan.of(config).share(1, 2)
    result = backend.train_step(HostBatch(whole.images[share], whole.labels[share]), 0.05)
    assert result.num_samples == 32
    assert backend.predict(random_images(5)).shape == (5, 10)


def test_a_number_of_replicas_other_than_popruns_is_refused(poprun):
    poprun(0, 2, 4)
    with pytest.raises(ConfigError, match="--num-replicas is 4 but pipeline.replication_factor makes 2"):
        build_backend(replicated(), resolve_device("ipu-sim"))


def test_a_pipeline_length_other_than_popruns_is_refused(poprun):
    module = poprun(0, 2, 2)
    module.getNumIpusPerReplica = lambda: 2
    with pytest.raises(ConfigError, match="--ipus-per-replica is 2 but pipeline.layers_per_ipu makes 4"):
        build_backend(replicated(), resolve_device("ipu-sim"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"evaluation_layers_per_ipu": [2, 2]}, "--ipus-per-replica is 4 but run.evaluation_layers_per_ipu makes 2"),
        ({"evaluation_replication_factor": 1}, "--num-replicas is 2 but run.evaluation_replication_factor makes 1"),
    ],
)
def test_a_layout_of_evaluation_other_than_popruns_is_refused(poprun, run, message):
    poprun(0, 1, 2)
    config = tiny_config(pipeline={"global_batch_size": 64, "replication_factor": 2}, run=run)
    with pytest.raises(ConfigError, match=message):
        build_backend(config, resolve_device("ipu-sim"))


def test_the_simulated_machine_has_the_ipus_that_evaluation_needs():
    config = tiny_config(pipeline={"layers_per_ipu": [2, 2]}, run={"evaluation_replication_factor": 2})
    backend = build_backend(config, resolve_device("ipu-sim"))
    backend.compile()
    assert backend.predict(random_images(3)).shape == (3, 10)
    backend.close()


def test_popdist_is_initialised_once_in_a_process(poprun):
    module = poprun(0, 2, 2)  # its init() asserts that it was not called before
    instances = [build_backend(replicated(), resolve_device("ipu-sim")).instances for _ in range(2)]
    assert module.initialised
    assert [(found.index, found.count) for found in instances] == [(0, 2), (0, 2)]


def test_only_the_first_instance_takes_over_the_saved_random_state(poprun):
    states = []
    for index in (0, 1):
        poprun(index, 2, 2)
        config = tiny_config(pipeline={"global_batch_size": 64, "replication_factor": 2}, run={"seed": 3})
        backend = build_backend(config, resolve_device("ipu-sim"))
        rng = {"seed": 9, "words": torch.arange(5056) % 7}
        backend.load_state_dict(dict(backend.state_dict(), rng=rng))
        backend.compile()
        *words, num_ipus = backend.state_dict()["rng"]["words"].tolist()
        states.append(torch.tensor(words))
        assert num_ipus == 4
    assert torch.equal(states[0], torch.arange(5056) % 7)
    assert not torch.equal(states[1], states[0])


def test_without_poprun_there_is_one_instance():
    assert find_instances(tiny_config(), resolve_device("cpu")).count == 1
    assert build_backend(tiny_config(), resolve_device("ipu-sim")).instances.count == 1


class FakePoptorch(types.ModuleType):
    def __init__(self, available):
        super().__init__("poptorch")
        self.ipuHardwareIsAvailable = lambda num_ipus=1: available
        self.__spec__ = types.SimpleNamespace(name="poptorch")


def test_auto_prefers_hardware_and_refuses_the_simulator(monkeypatch):
    assert resolve_device("auto").kind == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setitem(sys.modules, "poptorch", FakePoptorch(True))
    monkeypatch.setattr(torch, "__version__", "2.0.1+cpu")
    assert resolve_device("auto").kind == "ipu"
    monkeypatch.setitem(sys.modules, "poptorch", FakePoptorch(False))
    assert resolve_device("auto").kind != "ipu"


def test_simulated_devices_have_numerics_and_others_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name).numerics for name in ("ipu-sim", "ipu-sim:cuda", "cpu", "cuda")] == (
        ["exact", "exact", None, None]
    )
    for numerics in ("exact", "ipu"):
        device = resolve_device("ipu-sim:cuda", numerics=numerics)
        assert str(device) == f"ipu-sim:cuda, {numerics} numerics"
        assert device.facts == {"device": "ipu-sim:cuda", "simulated": True, "numerics": numerics}
    assert str(resolve_device("cuda")) == "cuda"
    assert resolve_device("cuda").facts == {"device": "cuda", "simulated": False, "numerics": None}


def test_the_modes_of_numerics_are_the_simulators():
    assert NUMERICS == MODES


def test_without_the_option_the_launchers_numerics_count():
    with simulator.numerics("ipu"):
        assert resolve_device("ipu-sim").numerics == "ipu"
        assert resolve_device("ipu-sim", numerics="exact").numerics == "exact"
    assert resolve_device("ipu-sim").numerics == "exact"


@pytest.mark.parametrize("numerics", ["exact", "ipu"])
@pytest.mark.parametrize(("name", "resolved"), [("cpu", "cpu"), ("cuda", "cuda"), ("ipu", "ipu"), ("auto", "cpu")])
def test_numerics_of_a_device_that_is_not_simulated_are_refused(monkeypatch, name, resolved, numerics):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: resolved == "cuda")
    message = (
        f"--numerics {numerics}: only ipu-sim simulates an IPU's arithmetic, but the device is {resolved}: add "
        "--device ipu-sim"
    )
    with pytest.raises(DeviceError, match=f"^{message}$"):
        resolve_device(name, numerics=numerics)


def test_unknown_numerics_are_refused():
    with pytest.raises(DeviceError, match=r"^--numerics half: unknown; use one of exact, ipu$"):
        resolve_device("ipu-sim", numerics="half")


DEVICE_MISTAKES = [
    ("ipu", None, "2.0.1", "comes with the Poplar SDK, not from PyPI.*--device ipu-sim"),
    ("ipu", simulator, "2.0.1", "is the simulator, not hardware: use --device ipu-sim"),
    ("ipu", FakePoptorch(True), "2.4.0", "needs torch 2.0.1 but this is 2.4.0: pip install -c constraints-ipu.txt"),
    ("ipu", FakePoptorch(False), "2.0.1", "no IPU is available on this machine"),
    ("cuda", None, "2.0.1", "no CUDA device; use --device cpu"),
    ("ipu-sim:cuda", None, "2.0.1", "no CUDA device; use --device ipu-sim"),
    ("tpu", None, "2.0.1", "unknown; use one of auto, ipu, ipu-sim"),
]


@pytest.mark.parametrize(("name", "module", "version", "message"), DEVICE_MISTAKES)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, module, version, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", version)
    if module is None:
        monkeypatch.delitem(sys.modules, "poptorch")
    else:
        monkeypatch.setitem(sys.modules, "poptorch", module)
    with pytest.raises(DeviceError, match=message):
        resolve_device(name)


def test_an_sdk_that_was_not_sourced_is_named(monkeypatch, tmp_path):
    (tmp_path / "poptorch.py").write_text("raise ImportError('libpopart.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "poptorch")
    monkeypatch.setattr(torch, "__version__", "2.0.1")
    with pytest.raises(DeviceError, match=r"libpopart.so.*source the SDK's enable.sh"):
        resolve_device("ipu")


def test_the_simulator_does_not_replace_a_real_poptorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "poptorch", FakePoptorch(True))
    with pytest.raises(DeviceError, match="real PopTorch is already imported"):
        build_backend(tiny_config(), resolve_device("ipu-sim"))


def test_float32_on_a_gpu_is_not_tf32_in_convolutions_either(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr("vit_ipu.backends.native.backend.NativeBackend", lambda *_: "a backend")
    monkeypatch.setattr(build, "local_device", lambda _: torch.device("cuda"))
    assert build_backend(tiny_config(), build.Device("cpu", "cpu", None)) == "a backend"
    assert torch.backends.cudnn.allow_tf32
    assert build_backend(tiny_config(), build.Device("cuda", "cuda", None)) == "a backend"
    assert not torch.backends.cudnn.allow_tf32

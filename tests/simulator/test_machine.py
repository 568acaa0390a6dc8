"""The simulated machine, the installed module, and programs that run on the simulator."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator.__main__ import main as simulator_main
from vit_ipu.simulator.installation.torch_compat import restore_removed

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def test_executors_share_the_machines_ipus():
    machine.configure(2)
    model = TwoStages()
    training = poptorch.trainingModel(model, options())
    training(*data(8))
    inference = poptorch.inferenceModel(TwoStages(), poptorch.Options().deviceIterations(2))
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)"):
        inference(*data(4))
    training.detachFromDevice()
    inference(*data(4))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        training(*data(8))
    inference.detachFromDevice()
    training(*data(8))
    assert training.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="already attached"):
        training.attachToDevice()
    training.detachFromDevice()
    with pytest.raises(poptorch.Error, match="Device is not attached"):
        training.detachFromDevice()
    training.destroy()
    assert machine.current.ipus_held == 0
    with pytest.raises(poptorch.Error, match="not been compiled"):
        training.detachFromDevice()


def test_a_machine_with_too_few_ipus_is_refused():
    machine.configure(1)
    with pytest.raises(poptorch.Error, match="No device found on the system with 2 IPUs"):
        poptorch.trainingModel(TwoStages(), options())(*data(8))


def test_a_machine_without_ipus_has_no_version():
    assert poptorch.ipuHardwareVersion() == 2
    machine.configure(16, hardware=False)
    with pytest.raises(AssertionError, match="No IPU hardware available on this system"):
        poptorch.ipuHardwareVersion()


def test_a_process_can_use_at_most_64_ipus():
    machine.configure(256)
    with pytest.raises(poptorch.Error, match="Too many IPUs requested"):
        poptorch.trainingModel(TwoStages(), options(1, 4, 64))(*data(256))


def test_a_deleted_executor_frees_its_ipus():
    executor = poptorch.trainingModel(TwoStages(), options())
    executor(*data(8))
    assert machine.current.ipus_held == 2
    del executor
    import gc

    gc.collect()
    assert machine.current.ipus_held == 0


def test_offline_compilation_holds_no_ipus_and_cannot_run():
    executor = poptorch.trainingModel(TwoStages(), options().useOfflineIpuTarget())
    executor.compile(*data(8))
    assert executor.isCompiled()
    assert machine.current.ipus_held == 0
    with pytest.raises(AssertionError, match="offline device"):
        executor(*data(8))


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, check=False)


def test_install_makes_a_module_with_a_valid_spec():
    code = (
        "import vit_ipu.simulator as s; s.install(8)\n"
        "import importlib.util, poptorch, poptorch.optim, poptorch.enums\n"
        "from poptorch.options import Options\n"
        "assert poptorch.__simulated__ and importlib.util.find_spec('poptorch').name == 'poptorch'\n"
        "assert poptorch.trainingModel is s.trainingModel and Options is poptorch.Options\n"
        "print(poptorch.ipuHardwareIsAvailable(8), poptorch.ipuHardwareIsAvailable(16), poptorch.ipuHardwareVersion())"
    )
    done = run(code)
    assert (done.stdout, done.returncode) == ("True False 2\n", 0), done.stderr


def test_importing_the_simulator_installs_nothing():
    assert run("import vit_ipu.simulator, sys; assert 'poptorch' not in sys.modules").returncode == 0


def test_the_real_poptorch_is_not_replaced():
    code = (
        "import sys, types; sys.modules['poptorch'] = types.ModuleType('poptorch')\n"
        "import vit_ipu.simulator as s\n"
        "try: s.install()\n"
        "except ImportError as error: print(error)"
    )
    assert "the real PopTorch is already imported" in run(code).stdout


PROGRAM = """
import sys, torch, poptorch
model = torch.nn.Linear(2, 2)
out = poptorch.inferenceModel(model)(torch.ones(3, 2))
print(sys.argv[1:], tuple(out.shape), poptorch.ipuHardwareIsAvailable(4), __name__)
"""


def test_a_poptorch_script_runs_unmodified(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for how in (["program.py", "--a", "1"], ["-m", "program", "--a", "1"]):
        command = [sys.executable, "-m", "vit_ipu.simulator", "--ipus", "4", *how]
        done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), check=False)
        assert done.stdout == "['--a', '1'] (3, 2) True __main__\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py is not a file; give a SCRIPT, or -m MODULE"),
        (["."], ". is not a file; give a SCRIPT, or -m MODULE"),
        ([], "give a SCRIPT, or -m MODULE"),
        (["--ipus", "0", "x.py"], "--ipus 0: give at least 1"),
        (["--device", "cuda", "x.py"], "no CUDA device"),
    ],
)
def test_a_program_that_cannot_start_exits_with_2_and_a_message(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        simulator_main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_samplers_of_older_programs_can_still_pass_data_to_torch(monkeypatch):
    monkeypatch.setattr(torch.utils.data.Sampler, "__init__", object.__init__)
    monkeypatch.delattr(torch.utils.data.Sampler, "__init__", raising=False)

    class Own(torch.utils.data.Sampler):
        def __init__(self, data):
            super().__init__(data)
            self.data = data

    with pytest.raises(TypeError):
        Own([1, 2])
    restore_removed()
    assert Own([1, 2]).data == [1, 2]


def test_functions_of_poptorchs_native_module():
    core = poptorch.poptorch_core

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append((core.isCompilingWithDispatcher(), core.isRunningOnIpu()))
            return x

    seen: list = []
    poptorch.inferenceModel(Model())(torch.ones(1))
    Model()(torch.ones(1))
    assert seen == [(True, True), (False, True), (False, False)]
    assert [core.ipuHardwareVersion(count) for count in (1, 16, 17)] == [2, 2, 0]
    assert str(poptorch.createPoptorchError("broken")) == "'poptorch_py_error': broken"
    with pytest.raises(NotImplementedError, match="_debugGetPopartIR is not simulated: the simulator compiles no PopA"):
        poptorch.inferenceModel(Model())._debugGetPopartIR()
    with pytest.raises(NotImplementedError, match="poptorch.importPoptorchMetadataFromFile is not simulated"):
        poptorch.importPoptorchMetadataFromFile("model.poptorch")


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ((torch.ones(2), [torch.zeros(1)]), True),
        ((torch.ones(2), [torch.ones(1)]), False),
        ((torch.ones(2), (torch.zeros(1),)), False),
        ((torch.ones(2),), False),
    ],
    ids=["close", "values", "type", "length"],
)
def test_nested_outputs_are_compared(other, same):
    assert poptorch.testing.allclose((torch.ones(2), [torch.zeros(1)]), other) is same


def test_a_profiling_channel_does_not_change_the_model():
    channel = poptorch.profiling.Channel("mine")
    model = TwoStages()
    assert channel.instrument(model, "forward") is model
    with channel.tracepoint("load"):
        assert model.training


def test_errors_of_each_kind_can_be_thrown():
    """To test how a program handles them, with PopTorch's attributes (Compiler.cpp:1793, ExceptionHandling.cpp)."""
    core = poptorch.poptorch_core
    with pytest.raises(poptorch.RecoverableError) as raised:
        core._throwTestError(core.TestErrorType.PoplarRecoverableFullReset)
    error = raised.value
    assert (error.type, error.recovery_action) == ("poplar_recoverable_runtime_error", "FULL_RESET")
    assert (error.message, error.location.count("throwTestError::")) == ("Reboot needed", 2)
    with pytest.raises(poptorch.UnrecoverableError, match="'poplar_unrecoverable_runtime_error': This is not recover"):
        core._throwTestError(core.TestErrorType.PoplarUnrecoverable)
    for kind in set(core.TestErrorType):
        with pytest.raises(poptorch.Error, match="Error raised in:\n.*throwTestError::bottomLevel"):
            core._throwTestError(kind)

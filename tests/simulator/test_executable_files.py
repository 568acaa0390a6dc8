"""Files of executors: a training is saved and continues, a compiled model is loaded, other files are refused."""

from __future__ import annotations

import logging
import os
import pickle

import pytest
import torch
from scale_model import Scale
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def adamw(model):
    return poptorch.optim.AdamW(model.parameters(), lr=1e-2)


def test_a_saved_training_resumes_as_if_it_had_not_stopped(tmp_path):
    straight, stopped = TwoStages(), TwoStages()
    stopped.load_state_dict(straight.state_dict())
    executors = [poptorch.trainingModel(model, options(), adamw(model)) for model in (straight, stopped)]
    for executor in executors:
        executor(*data(8))
    path = str(tmp_path / "folder" / "model.poptorch")
    executors[1].save(path)
    executors[1].destroy()
    loaded = poptorch.load(path)
    for seed in (1, 2):
        executors[0](*data(8, seed))
        loaded(*data(8, seed))
    for name, expected in straight.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], expected), name


def test_a_model_that_was_compiled_offline_runs_after_loading(tmp_path):
    offline = options().useOfflineIpuTarget()
    executor = poptorch.trainingModel(TwoStages(), offline)
    path = str(tmp_path / "model.poptorch")
    executor.compileAndExport(path, *data(8))
    assert machine.current.ipus_held == 0
    loaded = poptorch.load(path, edit_opts_fn=lambda opts: opts.useIpuId(1))
    assert loaded.options.ipu_id == 1
    loaded(*data(8))
    assert machine.current.ipus_held == 2


def test_an_executable_without_its_model_needs_load_executable(tmp_path):
    path = str(tmp_path / "model.poptorch")
    poptorch.trainingModel(TwoStages(), options()).compileAndExport(path, *data(8), export_model=False)
    with pytest.raises(AssertionError, match="created with 'export_model=False'"):
        poptorch.load(path)
    executor = poptorch.trainingModel(TwoStages(), options())
    executor.loadExecutable(path)
    assert executor.isCompiled()
    executor(*data(8))


def test_loading_an_executable_while_attached_replaces_the_old_one(tmp_path):
    machine.configure(4)
    path = str(tmp_path / "model.poptorch")
    straight, model = TwoStages(), TwoStages()
    model.load_state_dict(straight.state_dict())
    executors = [poptorch.trainingModel(trained, options()) for trained in (straight, model)]
    executors[1].compileAndExport(path, *data(8))
    executors[0](*data(8))
    executors[0].detachFromDevice()
    executors[1](*data(8))
    executors[1].loadExecutable(path)
    assert machine.current.ipus_held == 2
    for executor in executors[::-1]:
        executor(*data(8, 1))
        executor.destroy()
    assert machine.current.ipus_held == 0
    assert torch.equal(model.first.weight, straight.first.weight)


def test_an_executable_that_gets_no_ipus_leaves_the_old_one_attached(tmp_path):
    machine.configure(3)
    path = str(tmp_path / "model.poptorch")
    executor = poptorch.trainingModel(TwoStages(), options())
    executor.compileAndExport(path, *data(8))
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)"):
        executor.loadExecutable(path)
    assert executor.isAttachedToDevice()
    executor(*data(8))
    executor.destroy()
    assert machine.current.ipus_held == 0


def test_a_model_that_cannot_be_pickled_leaves_no_file(tmp_path):
    executor = poptorch.inferenceModel(Scale().eval())
    executor.compile(torch.ones(1, 2))
    executor.model.unpicklable = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        executor.save(str(tmp_path / "model.poptorch"))
    assert os.listdir(str(tmp_path)) == []


def test_saving_to_a_folder_adds_the_default_file_name(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        poptorch.inferenceModel(Scale().eval()).compileAndExport(str(tmp_path), torch.ones(1, 2))
    assert f"is a directory, saving model to {tmp_path / 'model.poptorch'}" in caplog.text
    assert os.listdir(str(tmp_path)) == ["model.poptorch"]


def test_a_file_of_another_version_of_the_simulator_is_refused(tmp_path):
    """The pickle in such a file names classes in modules that no longer exist."""
    old = tmp_path / "old.poptorch"
    old.write_bytes(b"vit_ipu.simulator executable\n" + b"cvit_ipu.simulator.executable_file\nExecutable\n.")
    message = "another version of this simulator wrote it: compile and save the model again"
    with pytest.raises(AssertionError, match=f"Invalid file .*{message}"):
        poptorch.load(str(old))
    with pytest.raises(poptorch.Error, match=f"Invalid file .*{message}"):
        poptorch.inferenceModel(Scale().eval()).loadExecutable(str(old))


def test_invalid_and_missing_files_are_refused(tmp_path):
    other = tmp_path / "other.bin"
    other.write_bytes(b"not an executable")
    with pytest.raises(AssertionError, match="Invalid file .*not written by this simulator"):
        poptorch.load(str(other))
    with pytest.raises(poptorch.Error, match="Invalid file"):
        poptorch.inferenceModel(Scale().eval()).loadExecutable(str(other))
    with pytest.raises(FileNotFoundError):
        poptorch.load(str(tmp_path / "missing"))
    with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroyed"):
        poptorch.inferenceModel(Scale().eval()).save(str(tmp_path / "model.poptorch"))


def test_a_file_of_another_version_of_poptorch_is_refused(tmp_path, monkeypatch):
    path = str(tmp_path / "model.poptorch")
    poptorch.inferenceModel(Scale().eval()).compileAndExport(path, torch.ones(1, 2))
    monkeypatch.setattr("vit_ipu.simulator.execution.factories.__version__", "9.9")
    with pytest.raises(AssertionError, match="PopTorch version mismatch: File was created with version: 3.4.0"):
        poptorch.load(path)


def test_saving_below_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    executor = poptorch.inferenceModel(Scale().eval())
    executor.compile(torch.ones(1, 2))
    with pytest.raises(AssertionError, match="is not a directory"):
        executor.save(str(tmp_path / "taken" / "model.poptorch"))

"""Executors: files, grouped parameters, buffers of replicas, hooks, and user-defined argument types."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
from typing import NamedTuple

import pytest
import torch
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator.execution import wrapped_model as wrapping

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Scale(nn.Module):
    """Multiplies the input by a parameter and adds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, x):
        out = x * self.factor + self.offset
        if not self.training:
            return out
        return out, poptorch.identity_loss(out**2, reduction="mean")


# ------------------------------------------------------------------------------------------- files


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
    assert "is a directory, saving model to {}".format(tmp_path / "model.poptorch") in caplog.text
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


def test_a_wrapped_model_is_pickled_unwrapped_with_trained_weights():
    model = Scale()
    executor = poptorch.trainingModel(model, options(G=1), torch.optim.SGD(model.parameters(), lr=0.1))
    executor(torch.ones(1, 2))
    for read in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), _through_torch_save(model)):
        assert type(read) is Scale
        assert torch.equal(read.factor, model.factor.detach())
        assert not torch.equal(read.factor, torch.tensor([2.0, 3.0]))
    assert type(copy.copy(model)) is type(model)


def _through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False) if "2.0" not in torch.__version__ else torch.load(file)


def test_a_model_is_unwrapped_and_wrapped_again():
    model = Scale()
    executor = poptorch.trainingModel(model, options(G=1), torch.optim.SGD(model.parameters(), lr=0.1))
    wrapped = type(model), type(model.factor), type(model.offset)
    wrapping.unwrapModelIfNecessary(model)
    assert (type(model), type(model.factor), type(model.offset)) == (Scale, nn.Parameter, torch.Tensor)
    wrapping.rewrapModelIfNecessary(model)
    assert (type(model), type(model.factor), type(model.offset)) == wrapped
    executor(torch.ones(1, 2))
    assert not torch.equal(model.factor.detach(), torch.tensor([2.0, 3.0]))


@pytest.mark.parametrize("name", ["unwrapModelIfNecessary", "rewrapModelIfNecessary"])
def test_a_plain_model_is_not_changed(name):
    model = Scale()
    getattr(wrapping, name)(model)
    assert (type(model), type(model.factor)) == (Scale, nn.Parameter)


class OnlyIfNecessary(poptorch.PoplarExecutor):
    """Attaches and detaches as mmcv's executor does."""

    def attachToDevice(self):
        if self.isCompiled() and not self._is_attached:
            super().attachToDevice()

    def detachFromDevice(self):
        if self.isCompiled() and self._is_attached:
            super().detachFromDevice()


def test_a_subclass_of_the_executor_knows_whether_it_is_attached():
    executor = OnlyIfNecessary(Scale().eval(), poptorch.Options(), training=False, poptorch_version="")
    executor.detachFromDevice()
    executor(torch.ones(1, 2))
    executor.attachToDevice()
    assert machine.current.ipus_held == 1
    executor.detachFromDevice()
    executor.detachFromDevice()
    assert machine.current.ipus_held == 0


# ---------------------------------------------------------------------------------------- replicas


class Grouped(nn.Module):
    """Multiplies the input by a weight of which each replica holds a part."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        out = x @ self.weight
        return out, poptorch.identity_loss(out**2, reduction="mean")


@pytest.mark.parametrize("orthogonal", [False, True], ids=["consecutive inputs", "orthogonal inputs"])
def test_replicas_that_hold_parts_of_a_weight_train_the_complete_weight(orthogonal):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 4, generator=generator), torch.randn(4, 8, generator=generator)
    whole = nn.Parameter(weight.clone())
    for _ in range(3):
        loss = ((x @ whole) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, whole)
        whole = nn.Parameter(whole.detach() - 0.5 * gradient)
    kinds = [poptorch.CommGroupType.Consecutive, poptorch.CommGroupType.Orthogonal]
    of_input, of_weight = reversed(kinds) if orthogonal else kinds
    model = Grouped(torch.stack(weight.chunk(4, dim=1)))
    opts = options(G=1, R=8).inputReplicaGrouping(4, of_input).outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=0.5))
    executor.weight.replicaGrouping(of_weight, 2, poptorch.VariableRetrievalMode.OnePerGroup)
    for _ in range(3):
        _, losses = executor(x)
        assert losses.shape == (8,)
    torch.testing.assert_close(torch.cat(list(model.weight.detach()), dim=1), whole.detach())


def test_every_replica_can_have_its_own_weight():
    model = Grouped(torch.ones(2, 3, 3))
    executor = poptorch.trainingModel(model, options(G=1, R=2), torch.optim.SGD(model.parameters(), lr=1.0))
    executor.weight.replicaGrouping(poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup)
    executor(torch.cat([torch.zeros(1, 3), torch.ones(1, 3)]))
    assert torch.equal(model.weight[0], torch.ones(3, 3))
    assert (model.weight[1] < 1).all()


@pytest.mark.parametrize(
    ("weight", "kind", "shards", "mode", "expected"),
    [
        (torch.ones(3, 2, 2), "Consecutive", 2, "OnePerGroup", "has 3 values along its first dimension, but 4 groups"),
        (torch.tensor(1.0), "Consecutive", 2, "OnePerGroup", "Scalars cannot be passed as per-replica weight"),
        (torch.ones(4, 2, 2), "Consecutive", 2, "AllReplicas", "VariableRetrievalMode.AllReplicas is not simulated"),
    ],
    ids=["wrong number of groups", "scalar", "all replicas"],
)
def test_invalid_groupings_are_refused(weight, kind, shards, mode, expected):
    model = Grouped(weight)
    executor = poptorch.trainingModel(model, options(G=1, R=8))

    def train():
        executor.weight.replicaGrouping(poptorch.CommGroupType[kind], shards, poptorch.VariableRetrievalMode[mode])
        executor(torch.ones(8, 2))

    with pytest.raises((poptorch.Error, NotImplementedError), match=expected):
        train()


def test_anchors_of_a_weight_that_replicas_hold_parts_of():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(8, 4, generator=generator), torch.randn(2, 4, 3, generator=generator)
    model = Grouped(weight.clone())
    opts = options(G=2, R=4).outputMode(poptorch.OutputMode.All)
    for name in ("Gradient___weight", "UpdatedVar___weight", "Accl1___weight", "Step___weight"):
        opts.anchorTensor(name, name)
    executor = poptorch.trainingModel(model, opts, poptorch.optim.Adam(model.parameters(), lr=0.1))
    executor.weight.replicaGrouping(poptorch.CommGroupType.Orthogonal, 2, poptorch.VariableRetrievalMode.OnePerGroup)
    executor(x)
    groups = [index % 2 for index in range(8)]
    expected = []
    for row, group in zip(x, groups):
        part = weight[group].clone().requires_grad_()
        expected += torch.autograd.grad(((row @ part) ** 2).mean(), part)
    torch.testing.assert_close(executor.getAnchoredTensor("Gradient___weight"), torch.cat(expected))
    updated = executor.getAnchoredTensor("UpdatedVar___weight")
    assert torch.equal(updated, torch.cat([model.weight[group] for group in groups[:4]]))
    moment = executor._optimizer.state_dict()["ipu_state"]["Accl1___weight"]
    assert torch.equal(executor.getAnchoredTensor("Accl1___weight"), torch.cat([moment[group] for group in groups[:4]]))
    assert executor.getAnchoredTensor("Step___weight").tolist() == [1.0] * 4


def group_weight(executor, kind, size):
    executor.weight.replicaGrouping(kind, size, poptorch.VariableRetrievalMode.OnePerGroup)


GROUPS = {
    "no grouping": (poptorch.CommGroupType.NoGrouping, 0, [4]),
    "consecutive": (poptorch.CommGroupType.Consecutive, 2, [2]),
    "orthogonal": (poptorch.CommGroupType.Orthogonal, 2, [2]),
    "one group": (poptorch.CommGroupType.All, 0, []),
}


@pytest.mark.parametrize(("kind", "size", "shape"), list(GROUPS.values()), ids=list(GROUPS))
def test_the_step_of_a_grouped_parameter_counts_for_each_group(kind, size, shape):
    """popart patterns/optimizerdecompose.cpp:44-75 adds the number of groups to the shape if it is more than 1."""
    count = shape[0] if shape else 1
    model = Grouped(torch.ones(count, 3, 3))
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(G=1, R=4), optimizer)
    group_weight(executor, kind, size)
    for step in (1, 2):
        executor(torch.ones(4, 3))
        state = optimizer.state_dict()["ipu_state"]
        assert list(state["Step___weight"].shape) == shape
        assert state["Step___weight"].flatten().tolist() == [step] * count
        assert state["Accl1___weight"].shape == (count, 3, 3)


def test_each_group_has_its_own_trust_ratio():
    """LAMB on two groups of one replica each equals LAMB on two models."""
    weights = torch.stack([torch.eye(3), 5 * torch.eye(3)])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    trained = []
    for weight, inputs in [(weights, x), (weights[:1], x[:1]), (weights[1:], x[1:])]:
        model = Grouped(weight.clone())
        opts = options(G=1, R=len(weight))
        opts.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
        optimizer = poptorch.optim.LAMB(model.parameters(), lr=0.1)
        executor = poptorch.trainingModel(model, opts, optimizer)
        group_weight(executor, poptorch.CommGroupType.NoGrouping, 0)
        executor(inputs)
        executor.copyWeightsToHost()
        trained.append(model.weight.detach().clone())
    torch.testing.assert_close(trained[0], torch.cat(trained[1:]))


def test_the_executable_and_its_inputs_have_poptorchs_private_names():
    """graphcore/examples and optimum-graphcore read these names (python/_poplar_executor.py:203-210, 971-1008)."""
    model = Scale()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(G=2), optimizer)
    assert executor._executable is None
    assert executor._executable_inputs is None
    assert executor._optimizer is optimizer
    x = torch.ones(2, 2)
    executor.compile(x)
    assert executor._executable
    assert executor._executable_inputs.args == [x]
    assert executor._executable_inputs.kwargs == {}
    executor.destroy()
    assert executor._executable is None
    assert poptorch.inferenceModel(Scale().eval())._optimizer is None


def test_the_inputs_of_a_compilation_that_fails_are_kept():
    """PopTorch keeps them before it traces the model (python/_poplar_executor.py:963, 1007-1008)."""
    executor = poptorch.inferenceModel(Scale().eval())
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    with pytest.raises(poptorch.Error, match="BFloat16"):
        executor.compile(x)
    assert executor._executable is None
    assert executor._executable_inputs.args == [x]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 1))

    def forward(self, x):
        self.total.add_(x)
        return self.total + 0


def test_buffers_of_replicas_change_independently():
    model = Counter()
    executor = poptorch.inferenceModel(model, options(G=1, R=2).broadcastBuffers(False))
    for _ in range(3):
        out = executor(torch.tensor([[1.0], [10.0]]))
    assert out.flatten().tolist() == [3.0, 30.0]
    model.total.fill_(100.0)
    executor.copyWeightsToDevice()
    assert executor(torch.tensor([[1.0], [10.0]])).flatten().tolist() == [101.0, 110.0]


def test_only_named_buffers_are_copied():
    model = Scale().eval()
    executor = poptorch.inferenceModel(model, options(G=1).updatableNamedBuffers(["offset"]))
    executor(torch.ones(1, 2))
    with torch.no_grad():
        model.offset.fill_(1.0)
        model.factor.fill_(50.0)
    assert executor(torch.ones(1, 2)).tolist() == [[2.0, 3.0]]
    executor.copyNamedBuffersToDevice()
    assert executor(torch.ones(1, 2)).tolist() == [[3.0, 4.0]]


def test_copying_named_buffers_without_any_is_refused():
    executor = poptorch.inferenceModel(Scale().eval())
    with pytest.raises(poptorch.Error, match="Model has not been compiled"):
        executor.copyNamedBuffersToDevice()
    executor(torch.ones(1, 2))
    with pytest.raises(poptorch.Error, match="No named buffers marked as updatable via updatableNamedBuffers option"):
        executor.copyNamedBuffersToDevice()


# --------------------------------------------------------------------------------------- the rest


def test_hooks_run_around_compilation_in_their_order():
    calls = []
    handles = [poptorch.registerPreCompileHook(lambda number=number: calls.append(number)) for number in (1, 2)]
    handles.append(poptorch.registerPostCompileHook(lambda: calls.append("after")))
    executor = poptorch.inferenceModel(Scale().eval())
    executor(torch.ones(1, 2))
    executor(torch.ones(1, 2))
    assert calls == [1, 2, "after"]
    for handle in handles:
        handle.remove()
    poptorch.inferenceModel(Scale().eval())(torch.ones(1, 2))
    assert calls == [1, 2, "after"]


def test_hooks_after_compilation_also_run_if_it_fails():
    calls = []

    def fail():
        raise ValueError("no compilation today")

    with poptorch.registerPostCompileHook(lambda: calls.append("after")):
        with pytest.raises(RuntimeError):
            poptorch.inferenceModel(Scale().eval())(torch.ones(1, 5))
        assert calls == ["after"]
        with poptorch.registerPreCompileHook(fail), pytest.raises(ValueError, match="no compilation today"):
            poptorch.inferenceModel(Scale().eval())(torch.ones(1, 2))
    assert calls == ["after", "after"]


@pytest.mark.parametrize("register", [poptorch.registerPreCompileHook, poptorch.registerPostCompileHook])
def test_a_hook_must_be_callable(register):
    with pytest.raises(RuntimeError, match="hook must be callable"):
        register(3)


def test_backward_of_an_output_is_refused():
    out = poptorch.inferenceModel(Scale().eval())(torch.ones(1, 2))
    with pytest.raises(poptorch.Error, match="backward\\(\\) cannot be called explicitly on outputs"):
        out.backward()


def test_the_compilation_time_needs_a_compiled_model_and_a_progress_bar():
    executor = poptorch.inferenceModel(Scale().eval())
    with pytest.raises(poptorch.Error, match="Please compile the model before obtaining compilation time"):
        executor.compilationTime()
    executor(torch.ones(1, 2))
    assert executor.compilationTime().total_seconds() > 0
    quiet = poptorch.inferenceModel(Scale().eval(), poptorch.Options().showCompilationProgressBar(False))
    quiet(torch.ones(1, 2))
    with pytest.raises(poptorch.Error, match="Please set showCompilationProgressBar option"):
        quiet.compilationTime()


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Box:
    def __init__(self, content) -> None:
        self.content = content


class SmallBox(Box):
    pass


class BoxParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.content

    def reconstruct(self, original_structure, tensor_iterator):
        return type(original_structure)(next(tensor_iterator))


class Unpack(nn.Module):
    def forward(self, box):
        return {"sum": Pair(box.content + 1, box.content * 2)}


@pytest.mark.parametrize("kind", [Box, SmallBox])
def test_user_defined_types_with_a_parser_can_be_arguments(kind):
    poptorch.registerCustomArgParser(Box, BoxParser())
    try:
        executor = poptorch.inferenceModel(Unpack())
        out = executor(kind(torch.ones(2)))
        assert isinstance(out["sum"], Pair)
        assert out["sum"].right.tolist() == [2.0, 2.0]
        assert executor(kind(torch.zeros(2)))["sum"].left.tolist() == [1.0, 1.0]
        with pytest.raises(poptorch.Error, match="Shape mismatch for box"):
            executor(kind(torch.ones(3)))
    finally:
        poptorch.registerCustomArgParser(Box, None)


def test_a_parser_must_inherit_from_the_parser_class():
    with pytest.raises(poptorch.Error, match="arg_parser must inherit from ICustomArgParser"):
        poptorch.registerCustomArgParser(Box, object())


def test_a_wrapped_model_can_destroy_its_executor():
    model = Scale()
    executor = poptorch.trainingModel(model, options(1, 1, 1))
    executor(torch.ones(2, 2))
    assert repr(executor) == poptorch.module_repr(model)
    model.destroy()
    assert not executor.isCompiled()
    assert machine.current.ipus_held == 0
    assert (type(model), type(model.factor), type(model.offset)) == (Scale, nn.Parameter, torch.Tensor)

"""Gradients and updates of all weights as long tensors, which need few operations, give the same results.

Micro-batches as CUDA graphs are compared with eager ones on a GPU.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.execution import passes
from vit_ipu.simulator.execution.passes import Passes
from vit_ipu.simulator.installation.install import install
from vit_ipu.simulator.updates.updater import Updater

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

OPTIMIZERS = [
    (poptorch.optim.SGD, {"lr": 0.1}),
    (poptorch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "use_combined_accum": True}),
    (poptorch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "use_combined_accum": False}),
    (poptorch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (poptorch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (poptorch.optim.RMSprop, {"lr": 0.01, "centered": True}),
    (poptorch.optim.LAMB, {"lr": 0.01, "weight_decay": 0.1}),
]


class InPlace(nn.Module):
    """Two layers in float16 and one in float32, with a loss."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5).half(), nn.Linear(5, 3).half()
        self.last = nn.Linear(3, 3)

    def forward(self, x, labels):
        out = self.last(self.second(torch.tanh(self.first(x.half()))).float())
        return out, nn.functional.cross_entropy(out, labels)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Keeps accumulators in place and joins updates, as on a GPU, but without graphs."""

    def find_way(self, trace, half):
        self._gradients.stay_in_place(torch.device("cpu"))
        self._graphs = SimpleNamespace(run=lambda key, work, inputs: work(inputs))

    monkeypatch.setattr(Passes, "_find_way_on_host", find_way)
    monkeypatch.setattr(Updater, "_joins", lambda self, variable: self._rule.is_elementwise)


def trained(model, optimizer, arguments, mode, *, running=True, calls=3):
    model = copy.deepcopy(model)
    made = options(1, 4, 2)
    if running:
        made.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)
    with poptorch.numerics(mode):
        executor = poptorch.trainingModel(model, made, optimizer(model.parameters(), loss_scaling=8.0, **arguments))
        losses = [executor(*data(16, seed))[1] for seed in range(calls)]
    return [*model.state_dict().values(), *losses]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("mode", ["exact", "ipu"])
@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
def test_long_tensors_give_the_same_updates(request, monkeypatch, optimizer, arguments, mode, running):
    torch.manual_seed(0)
    model = InPlace()
    with monkeypatch.context() as context:
        context.setattr(Updater, "_joins", lambda self, variable: False)
        context.setattr(Passes, "_find_way_on_host", lambda self, trace, half: None)
        expected = trained(model, optimizer, arguments, mode, running=running)
    request.getfixturevalue("as_on_a_gpu")
    found = trained(model, optimizer, arguments, mode, running=running)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


# -------------------------------------------------------------------------------------- on a GPU


class WithDropout(TwoStages):
    """Draws random numbers, and has statistics that a forward pass changes."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x, labels):
        return super().forward(self.norm(x), labels)


def on_the_gpu(mode, half, calls, *, graphs=True, monkeypatch=None, resume=None):
    torch.manual_seed(0)
    model = WithDropout()
    if half:
        model = model.half()
    made = options(2, 4)
    made.Precision.enableStochasticRounding(True)
    if resume is not None:
        model.load_state_dict(resume[0])
    with monkeypatch.context() as context, poptorch.numerics(mode):
        if not graphs:
            context.setattr(passes, "CudaGraphs", lambda *arguments: None)
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
        executor = poptorch.trainingModel(model, made, optimizer)
        batches = [data(32, seed, torch.float16 if half else torch.float32) for seed in range(10)]
        executor.compile(*batches[0])
        if resume is not None:
            optimizer.load_state_dict(resume[1])
            executor.setOptimizer(optimizer)
            executor.rng_state = resume[2]
        losses = [executor(*batch)[1] for batch in batches[len(resume[3]) if resume else 0 :][:calls]]
    return model.state_dict(), optimizer.state_dict(), executor.rng_state, losses


@pytest.fixture
def gpu():
    install(16, device="cuda")
    yield
    install(16, device="cpu")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("half", [False, True])
def test_cuda_graphs_give_the_bits_of_eager_micro_batches(monkeypatch, half):
    eager, recorded = (on_the_gpu("exact", half, 3, graphs=on, monkeypatch=monkeypatch) for on in (False, True))
    for name, tensor in eager[0].items():
        assert torch.equal(tensor, recorded[0][name]), name
    assert all(torch.equal(a, b) for a, b in zip(eager[3], recorded[3]))
    assert eager[2] == recorded[2]


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", ["exact", "ipu"])
def test_a_training_with_cuda_graphs_resumes_bit_for_bit(monkeypatch, mode):
    whole, part = (on_the_gpu(mode, True, calls, monkeypatch=monkeypatch) for calls in (4, 2))
    resumed = on_the_gpu(mode, True, 2, monkeypatch=monkeypatch, resume=part)
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, resumed[0][name]), name

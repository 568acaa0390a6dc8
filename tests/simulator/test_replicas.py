"""Replicas: parameters of which they hold parts, and buffers of their own."""

from __future__ import annotations

import pytest
import torch
from scale_model import Scale
from simulated import options
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


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

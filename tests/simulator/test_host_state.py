"""State on the host: plain attributes change only while a forward pass is traced; inference keeps its statistics.

The counter follows the example in PopTorch's user guide (docs/user_guide/buffers.py).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.tracing.host_state import HostState

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Counter(nn.Module):
    """Counts its calls in a tensor, a number or a buffer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "buffer":
            self.register_buffer("count", torch.zeros(1))
        else:
            self.count = 0 if kind == "number" else torch.zeros(1)
        self.kind = kind

    def forward(self, x):
        if self.kind == "replaced tensor":
            self.count = self.count + 1
        else:
            self.count += 1
        return x * self.count if self.kind in ("number", "buffer") else self.count


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("tensor", [1, 1, 1]), ("replaced tensor", [1, 1, 1]), ("number", [1, 1, 1]), ("buffer", [1, 2, 3])],
)
def test_only_a_buffer_counts_the_calls(kind, counts):
    model = Counter(kind)
    executor = poptorch.inferenceModel(model)
    assert [executor(torch.ones(1)).item() for _ in range(3)] == counts
    if kind == "tensor":
        assert model.count.item() == 1


def test_a_plain_attribute_does_not_count_device_iterations():
    executor = poptorch.inferenceModel(Counter("number"), poptorch.Options().deviceIterations(3))
    assert executor(torch.ones(3)).tolist() == [1, 1, 1]


class Caches(nn.Module):
    """Creates tensors in the first call and keeps the tensors for later calls."""

    def __init__(self) -> None:
        super().__init__()
        self.by_length = {}
        self.seen = []
        self.last = None

    def forward(self, x):
        if not hasattr(self, "positions"):
            self.positions = torch.arange(x.shape[1]).float()
        if x.shape[1] not in self.by_length:
            self.by_length[x.shape[1]] = torch.full((x.shape[1],), 2.0)
        self.seen.append(x)
        before = x if self.last is None else self.last
        self.last = x + before
        return self.positions * self.by_length[x.shape[1]] + self.last * len(self.seen)


def test_caches_of_a_forward_are_created_again_for_each_micro_batch():
    executor = poptorch.inferenceModel(Caches(), poptorch.Options().deviceIterations(2))
    for _ in range(2):
        assert executor(torch.ones(2, 3)).tolist() == [[2.0, 4.0, 6.0]] * 2


class Hooked(nn.Module):
    """Returns a feature that a hook puts into a dictionary, which the hook and the model share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.features = features = {}
        self.layer.register_forward_hook(lambda module, given, result: features.update(layer=[result]))

    def forward(self, x):
        return self.layer(x) * 0, self.features["layer"][0]


def test_a_hook_and_the_model_still_share_a_dictionary():
    model, x = Hooked(), torch.randn(2, 2)
    executor = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))
    torch.testing.assert_close(executor(x)[1], F.linear(x, model.layer.weight, model.layer.bias).detach())


def test_an_attribute_that_is_not_changed_is_not_replaced():
    model = Caches()
    model.unused, model.note = torch.tensor([1.0, float("nan")]), ["host"]
    note, unused = model.note, model.unused
    poptorch.inferenceModel(model)(torch.ones(1, 3))
    assert model.note is note
    assert model.unused is unused


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (float("nan"), float("nan") * 1, False),
        (float("nan"), 1.0, True),
        (1.0, float("nan"), True),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), False),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), False),
    ],
)
def test_nan_equals_nan(before, after, changed):
    model = nn.Module()
    model.value = before
    state = HostState(model)
    model.value = after
    assert bool(state.changes()) == changed


# ---------------------------------------------------------------------------------------- batch norm


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        out = self.norm(x)
        return out, self.norm.running_mean, poptorch.identity_loss((out**2), reduction="mean")


def test_inference_in_training_mode_normalises_by_the_batch_but_keeps_the_statistics():
    model, x = Normed(), torch.randn(8, 3) + 5
    executor = poptorch.inferenceModel(model)
    out, mean, _ = executor(x)
    torch.testing.assert_close(out, F.batch_norm(x, None, None, training=True))
    assert mean.tolist() == [0, 0, 0]
    executor.copyWeightsToHost()
    assert model.norm.running_var.tolist() == [1, 1, 1]


def test_training_updates_the_statistics():
    model, x = Normed(), torch.randn(8, 3) + 5
    poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))(x)
    torch.testing.assert_close(model.norm.running_mean.clone(), x.mean(0) * 0.1)

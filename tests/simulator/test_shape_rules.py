"""Operations whose shapes PopTorch infers by its own rules (RegisterMetaOps.cpp.inc) run with torch's values."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_tracing import infer
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

X = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
VOLUME = torch.rand(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([[0, 2], [1, 2]])
INTEGERS = (X > 0).int()


def limits():
    return torch.arange(6.0) / 6 - 0.5


def into(function, *shape, dtype=torch.float32):
    """Returns the function with an `out` of a shape and type."""
    return lambda x: function(x, torch.empty(shape, dtype=dtype))


OPERATIONS = {
    "bincount": (lambda x: torch.bincount(x.flatten(), minlength=4), CLASSES),
    "bincount with weights": (lambda x: torch.bincount(x.flatten(), 0.5 * x.flatten(), minlength=4), CLASSES),
    "bucketize": (lambda x: torch.bucketize(x, limits()), X),
    "bucketize to int32": (lambda x: torch.bucketize(x, limits(), out_int32=True, right=True), X),
    "bucketize into": (into(lambda x, o: torch.bucketize(x, limits(), out=o), 2, 4, 6, 6, dtype=torch.int64), X),
    "hardsigmoid": (lambda x: F.hardsigmoid(6 * x), X),
    "hardsigmoid in place": (lambda x: F.hardsigmoid(6 * x, inplace=True), X),
    "silu": (F.silu, X),
    "silu in place": (lambda x: F.silu(2 * x, inplace=True), X),
    "rrelu": (F.rrelu, X),
    "rrelu in training": (lambda x: F.rrelu(x, 0.2, 0.2, training=True), X),
    "rrelu in place": (lambda x: F.rrelu(x + 0, 0.2, 0.2, training=True, inplace=True), X),
    "count_nonzero": (torch.count_nonzero, INTEGERS),
    "count_nonzero of floats": (lambda x: torch.count_nonzero(x.relu()), X),
    "count_nonzero of a number": (lambda x: torch.count_nonzero(x[0, 0, 0, 0]), X),
    "count_nonzero over a dimension": (lambda x: torch.count_nonzero(x, dim=-1), INTEGERS),
    "count_nonzero over dimensions": (lambda x: x.count_nonzero(dim=(1, -1)), INTEGERS),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUME),
    "max_pool3d without a batch": (lambda x: F.max_pool3d(x[0], (1, 2, 3), stride=(2, 1, 2)), VOLUME),
    "max_pool3d, dilated": (nn.MaxPool3d(3, stride=1, padding=1, dilation=2), VOLUME),
    "max_pool3d, ceil_mode": (nn.MaxPool3d(2, stride=3, padding=1, ceil_mode=True), VOLUME),
    "max_pool3d, ceil_mode, last window outside": (nn.MaxPool3d(1, stride=3, padding=0, ceil_mode=True), VOLUME),
    "median": (torch.median, X),
    "median over a dimension": (lambda x: x.median(dim=1), X),
    "median that keeps the dimension": (lambda x: torch.median(x, -1, keepdim=True), X),
    "median of numbers": (lambda x: torch.median(x[0, 0, 0, 0], 0), X),
    "nll_loss2d": (lambda x: F.cross_entropy(x, (x[:, 0] > 0).to(torch.int64)), X),
    "nll_loss2d without reduction": (lambda x: F.cross_entropy(x, (x[:, 0] > 0).to(torch.int64), reduction="none"), X),
    "one_hot": (lambda x: F.one_hot(x, 3), CLASSES),
    "one_hot by keyword": (lambda x: F.one_hot(x, num_classes=4).float() * 2, CLASSES),
    "upsample_nearest3d": (lambda x: F.interpolate(x, scale_factor=2), VOLUME),
    "upsample_nearest3d to a size": (lambda x: F.interpolate(x, size=(3, 5, 9)), VOLUME),
    "weight_norm": (nn.utils.weight_norm(nn.Linear(6, 3)), X),
    "weight_norm over all": (lambda x: torch._weight_norm(x[0], x[0, :1, :1, :1].abs() + 1, -1), X),
    "cumsum": (lambda x: x.cumsum(1), X),
    "cumsum to a type": (lambda x: x.cumsum(1, dtype=torch.float32), INTEGERS),
    "cumsum into": (into(lambda x, o: torch.cumsum(x, 1, out=o), 2, 4, 6, 6), X),
    "cumsum into int32": (into(lambda x, o: torch.cumsum(x, 1, out=o), 2, 4, 6, 6, dtype=torch.int32), INTEGERS),
    "cumsum to a type into": (
        into(lambda x, o: torch.cumsum(x, 1, dtype=torch.int32, out=o), 2, 4, 6, 6, dtype=torch.int32),
        INTEGERS,
    ),
    "cumprod into int32": (into(lambda x, o: torch.cumprod(x, 1, out=o), 2, 4, 6, 6, dtype=torch.int32), INTEGERS),
    "sum into int32": (into(lambda x, o: torch.sum(x, 1, out=o), 2, 6, 6, dtype=torch.int32), INTEGERS),
    "prod into": (into(lambda x, o: torch.prod(x, 1, out=o), 2, 6, 6), X),
    "tanh": (torch.tanh, X),
    "layer_norm": (nn.LayerNorm(6), X),
}


@pytest.mark.parametrize(("function", "x"), OPERATIONS.values(), ids=OPERATIONS.keys())
def test_values_and_types_are_torchs(function, x):
    is_module = isinstance(function, nn.Module)
    on_ipu = poptorch.inferenceModel(function) if is_module else partial(infer, lambda model, x: function(x))
    got, expected = on_ipu(x), function(x)
    for one, other in zip(got, expected) if isinstance(expected, tuple) else [(got, expected)]:
        torch.testing.assert_close(one, other.int() if other.dtype == torch.int64 else other)


TRAINED = {
    "max_pool3d": lambda x: F.max_pool3d(x[:, None], 2),
    "median": lambda x: x.median(dim=1).values,
    "rrelu": lambda x: F.rrelu(x, 0.2, 0.2, training=True),
    "weight_norm": lambda x: torch._weight_norm(x[0], x[0, :, :1, :1].abs() + 1, 0),
}


class Scaled(nn.Module):
    """A model of one weight."""

    def __init__(self, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.ones(6)), function

    def forward(self, x):
        return F.mse_loss(self.function(x * self.weight), x.new_ones(()))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("function", TRAINED.values(), ids=TRAINED.keys())
def test_gradients_are_torchs(function):
    model, native = Scaled(function), Scaled(function)
    poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))(X)
    native(X).backward()
    torch.testing.assert_close(model.weight.data, 1 - native.weight.grad)
    assert native.weight.grad.abs().max() > 0


def test_equal_is_false_for_tensors_on_an_ipu(caplog):
    assert torch.equal(infer(lambda m, x: x + (1 if torch.equal(x, x) else 2) + (x.equal(x) * 10), X), X + 2)
    assert [r.message for r in caplog.records] == [
        "torch.equal of tensors on an IPU is always False, whatever their values; compare on the IPU with "
        "(x == y).all(), or on the host before the model is called"
    ]


def test_equal_compares_tensors_on_the_host_once(caplog):
    def forward(model, x):
        answers = [torch.equal(model.row, model.row), torch.equal(x, x), model.row.equal(torch.zeros(2, device="cpu"))]
        return x + sum(2**index * answer for index, answer in enumerate(answers))

    assert torch.equal(infer(forward, X, row=torch.ones(2)), X + 1)
    assert len(caplog.records) == 1

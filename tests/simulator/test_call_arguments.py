"""Arguments of calls: the first call fixes types, shapes and structure; how arguments reach the forward."""

from __future__ import annotations

import logging

import pytest
import torch
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


CALLS = [
    (lambda x, y: (x[:4], y[:4]), "Shape mismatch for x: expected .*8, 6.* but got .*4, 6"),
    (lambda x, y: (x.double(), y), "Data type mismatch for x: expected torch.float32 but got torch.float64"),
    (lambda x, y: (x, None), "Type mismatch for labels"),
]


@pytest.mark.parametrize(("change", "message"), CALLS)
def test_later_calls_must_have_the_types_and_shapes_of_the_first(change, message):
    executor = poptorch.trainingModel(TwoStages(), options())
    x, labels = data(8)
    executor(x, labels)
    with pytest.raises(poptorch.Error, match=message):
        executor(*change(x, labels))


class Collect(nn.Module):
    def forward(self, *tensors, scale=1.0, pair=None, **more):
        return torch.stack([*tensors, *(pair or []), *more.values()]).sum(0) * scale


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (2, {}, "Number of positional arguments mismatch: expected 1 arguments but got 2"),
        (1, {"scale": 2.0}, "Value mismatch for scale: expected 1.0 but got 2.0"),
        (1, {"pair": [torch.ones(2)]}, "Length mismatch for pair: expected 2 elements but got 1"),
        (1, {"other": torch.ones(2)}, "Keys mismatch for named arguments: Unexpected arguments: other"),
    ],
    ids=["count", "value", "length", "keys"],
)
def test_later_calls_must_have_the_structure_of_the_first(args, kwargs, message):
    executor = poptorch.inferenceModel(Collect())
    pair = [torch.ones(2), torch.ones(2)]
    assert executor(torch.ones(2), pair=pair).tolist() == [3, 3]
    with pytest.raises(poptorch.Error, match=message):
        executor(*[torch.ones(2)] * args, **dict({"pair": pair}, **kwargs))


def test_a_batch_must_divide_into_micro_batches():
    with pytest.raises(AssertionError, match=r"batch dimension \(6\) must be a multiple of .* = 4"):
        poptorch.trainingModel(TwoStages(), options())(*data(6))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((1, 2, 3), {}, AssertionError, "Too many arguments"),
        ((1,), {"label": 2}, AssertionError, "label is not a valid parameter"),
        ((1,), {"x": 2}, AssertionError, "x was passed more than once"),
        ((torch.ones(4, 6),), {}, poptorch.Error, "Mandatory parameter labels missing"),
    ],
)
def test_arguments_must_match_the_forward(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        poptorch.trainingModel(TwoStages(), options())(*args, **kwargs)


def test_arguments_that_are_not_contiguous_are_converted_with_one_warning(caplog):
    executor = poptorch.inferenceModel(nn.Identity())
    x = torch.arange(6.0).reshape(2, 3).t()
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        assert torch.equal(executor(x), x)
        assert torch.equal(executor(x), x)
    assert caplog.text.count("At least one input tensor is not contiguous") == 1


def test_named_and_default_arguments_are_passed_to_the_forward():
    class Model(nn.Module):
        def forward(self, x, scale=2.0, *rest, shift=None, **more):
            return x * scale + (0 if shift is None else shift) + more.get("extra", 0)

    model = poptorch.inferenceModel(Model())
    x = torch.ones(2, 2)
    assert torch.equal(model(x, shift=x, extra=x), 4 * x)
    with pytest.raises(poptorch.Error, match="Keys mismatch for named arguments: Missing arguments: extra"):
        model(x, shift=x)

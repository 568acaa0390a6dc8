"""Blocks of the simulator: how each kind of annotation places operations, and which arguments are refused."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Calls(nn.Module):
    def __init__(self, function, **layers) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


@pytest.fixture
def blocks_of(caplog):
    """Returns a function that traces a model and lists the ID, stage and IPU of each block that begins."""

    def trace(model):
        strategy = poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement)
        options = poptorch.Options().setExecutionStrategy(strategy).autoRoundNumIPUs(True)
        executor = poptorch.inferenceModel(model, options)
        with caplog.at_level(logging.DEBUG, logger="poptorch"):
            assert torch.equal(executor(torch.ones(2)), model(torch.ones(2)))
        started = [record.args for record in caplog.records if record.msg.startswith("Starting block")]
        return [(block, stage, ipu) for block, stage, _, ipu in started]

    return trace


def with_contexts(model, x):
    with poptorch.Block("first", ipu_id=0):
        x = x * 2
    with poptorch.Block("second", 1):
        return x + 1


@poptorch.BlockFunction("decorated", ipu_id=2)
def decorated(x, *, factor):
    return x * factor


def started(model, x):
    poptorch.Block.start("first")
    x = x * 2
    poptorch.Block.start("second", ipu_id=1)
    return x + 1


def layered(model, x):
    return model.second(model.first(x))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Calls(with_contexts), [("first", 1, 0), ("second", 2, 1)]),
        (Calls(lambda model, x: decorated(x, factor=3)), [("decorated", 1, 2)]),
        (Calls(started), [("first", 1, 1), ("second", 2, 1)]),
        (
            Calls(
                layered,
                first=poptorch.BeginBlock(nn.Identity(), "one", 0),
                second=poptorch.BeginBlock(nn.ReLU(), "two", ipu_id=1),
            ),
            [("one", 1, 0), ("two", 2, 1)],
        ),
        (
            Calls(lambda model, x: model.first(x), first=poptorch.BeginBlock(torch.relu, "legacy", 3)),
            [("legacy", 1, 3)],
        ),
    ],
    ids=["context", "decorator", "start", "module", "function"],
)
def test_each_kind_of_annotation_begins_its_blocks(blocks_of, model, expected):
    assert blocks_of(model) == expected


def test_blocks_without_an_id_are_numbered(blocks_of):
    first, second = poptorch.BeginBlock(nn.ReLU()), poptorch.BeginBlock(torch.relu)

    def forward(model, x):
        poptorch.Block.useAutoId()
        return second(first(x))

    assert blocks_of(Calls(forward)) == [("0", 1, 1), ("1", 2, 2)]
    assert poptorch.module_repr(first).startswith("BeginBlock(user_id=0, ipu_id=None) ReLU")
    assert isinstance(second, poptorch.LegacyBeginBlockFn)
    assert second._user_id == "1"


def test_use_auto_id_restarts_the_numbering(blocks_of):
    def forward(model, x):
        for _ in range(2):
            poptorch.Block.useAutoId()
            with poptorch.Block(ipu_id=0):
                x = x * 2
        return x

    assert blocks_of(Calls(forward)) == [("0", 1, 0), ("0", 1, 0)]


def test_annotations_are_deep_copied_and_can_be_removed():
    model = nn.Sequential(poptorch.BeginBlock(nn.ReLU(), "a"), nn.Sequential(poptorch.BeginBlock(nn.ReLU(), "b")))
    assert poptorch.module_repr(copy.deepcopy(model)) == poptorch.module_repr(model) != repr(model)
    poptorch.removeBlocks(model)
    assert poptorch.module_repr(model) == repr(model)


@pytest.mark.parametrize(
    ("function", "raised", "message"),
    [
        (lambda: poptorch.BeginBlock(5), poptorch.Error, "module is not an instance of torch.nn.Module or function."),
        (
            lambda: poptorch.BeginBlock(poptorch.BeginBlock(nn.ReLU())),
            poptorch.Error,
            "module has already been assigned to a block.",
        ),
        (lambda: poptorch.removeBlocks(5), AssertionError, ""),
    ],
    ids=["number", "twice", "remove"],
)
def test_invalid_arguments_of_blocks_are_refused(function, raised, message):
    with pytest.raises(raised) as caught:
        function()
    assert message in str(caught.value)

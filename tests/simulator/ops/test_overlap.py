"""Overlapped input and output: tensors pass unchanged, and PopTorch's rules are checked when a model is compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

LOOP, NONE = poptorch.OverlapMode.OverlapAccumulationLoop, poptorch.OverlapMode.NoOverlap
X = torch.tensor([1.0, 2.0])


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def options(*, sharded=True, tiles=32, mode=None):
    made = poptorch.Options()
    if sharded:
        made.setExecutionStrategy(poptorch.ShardedExecution())
    if tiles:
        made.TensorLocations.numIOTiles(tiles)
    return made if mode is None else made.outputMode(mode)


def marked_in(x, mode=LOOP):
    return poptorch.set_overlap_for_input(x, mode)


def marked_out(x, mode=LOOP):
    return poptorch.set_overlap_for_output(x, mode)


def used_twice(x):
    return x + 1, marked_in(x)


def marked_twice(x):
    return marked_in(x), marked_in(x)


def returned_as_well(x):
    return x, marked_in(x)


def not_an_input(x):
    return marked_in(marked_in(x) + 1)


def output_twice(x):
    y = x + 1
    return y, marked_out(y)


def output_marked_twice(x):
    y = x + 1
    return marked_out(y), marked_out(y)


def not_an_output(x):
    return marked_out(x) + 1


@pytest.mark.parametrize(
    ("function", "made", "message"),
    [
        (used_twice, options(), "must be the only op applied to an input. This is not the case for input 1"),
        (marked_twice, options(), "must be the only op applied to an input. This is not the case for input 1"),
        (returned_as_well, options(), "must be the only op applied to an input. This is not the case for input 1"),
        (not_an_input, options(), "set_overlap_for_input applied on a node which is not a tensor input"),
        (output_twice, options(), "cannot be used with a tensor that is returned twice"),
        (output_marked_twice, options(), "cannot be used with a tensor that is returned twice"),
        (not_an_output, options(), "set_overlap_for_output applied on a node which is not a tensor output"),
        (lambda x: marked_in(x) + 1, options(sharded=False), "not supported with poptorch.PipelinedExecution"),
        (lambda x: marked_in(x) + 1, options(tiles=0), "You must allocate at least 32 IO tiles"),
        (lambda x: marked_out(x + 1), options(tiles=0), "You must allocate at least 32 IO tiles"),
        (lambda x: marked_in(x) + 1, options(mode=poptorch.OutputMode.Final), "poptorch.OutputMode.All or"),
    ],
    ids="used marked returned not-input out-twice out-marked not-output pipelined tiles out-tiles mode".split(),
)
def test_overlap_that_breaks_a_rule_is_refused_at_compilation(function, made, message):
    with pytest.raises(poptorch.Error) as caught:
        poptorch.inferenceModel(Calls(function), made).compile(X)
    assert message in str(caught.value)


def used_after(x):
    y = marked_out(x + 1)
    return y, y + 1


def in_a_structure(x):
    marked = marked_out({"a": marked_in([x])[0] + 1, "b": 5})
    return marked["a"], marked["b"] * torch.ones(1)


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (lambda x: marked_out(marked_in(x) * 2), options()),
        (lambda x: marked_out(marked_in(x) * 2), options(mode=poptorch.OutputMode.Sum)),
        (lambda x: marked_out(marked_in(x, NONE) * 2, NONE), options(sharded=False, tiles=0)),
        (used_after, options()),
        (in_a_structure, options()),
    ],
    ids=["both", "sum", "no-overlap", "used-after", "structure"],
)
def test_overlap_does_not_change_outputs(function, made):
    out = poptorch.inferenceModel(Calls(function), made)(X)
    expected = function(X)
    pairs = zip(out, expected) if isinstance(expected, tuple) else [(out, expected)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_on_the_host_the_same_tensors_are_returned():
    assert marked_in({"x": [X]})["x"][0] is X
    assert marked_out(X) is X


class NumberParser(poptorch.ICustomArgParser):
    """A parser that yields something other than tensors."""

    def yieldTensors(self, struct):
        yield struct.value

    def reconstruct(self, original_structure, tensor_iterator):
        return next(tensor_iterator)


class Holder:
    value = 5


@pytest.mark.parametrize(("mark", "kind"), [(marked_in, "inputs"), (marked_out, "outputs")], ids=["input", "output"])
def test_only_tensors_can_be_marked(mark, kind):
    poptorch.registerCustomArgParser(Holder, NumberParser())
    try:
        with pytest.raises(poptorch.Error, match=f"overlap for torch.tensor {kind}. <class 'int'> is not"):
            mark(Holder())
    finally:
        poptorch.registerCustomArgParser(Holder, None)

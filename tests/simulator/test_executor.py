"""Executors: private names that programs read, hooks, compilation time, and user-defined argument types."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from scale_model import Scale
from simulated import options
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


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

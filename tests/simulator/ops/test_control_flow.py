"""The simulator's for_loop and cond: tracing, runs, use on the host, and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Calls(nn.Module):
    """A model whose forward is a function."""

    def __init__(self, function, *parameters) -> None:
        super().__init__()
        self.function, self.parameters_ = function, nn.ParameterList(parameters)

    def forward(self, *inputs):
        return self.function(*inputs)


def infer(function, *inputs):
    return poptorch.inferenceModel(Calls(function))(*inputs)


def train(function, *inputs):
    weight = nn.Parameter(torch.ones(2))
    model = Calls(lambda *given: poptorch.identity_loss(function(*given)[0] * weight, "sum"), weight)
    return poptorch.trainingModel(model)(*inputs)


X = torch.tensor([1.0, 2.0])


# ---------------------------------------------------------------------------------------- for_loop


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_loop_runs_its_body_count_times(count):
    out = infer(lambda x, y: poptorch.for_loop(count, lambda a, b: (a + b, b), [x, y]), X, X)
    assert isinstance(out, list)
    assert torch.equal(out[0], X * (1 + count))
    assert torch.equal(out[1], X)


def test_loop_on_the_host_runs_its_body_once():
    assert torch.equal(poptorch.for_loop(5, lambda a: a * 2, [X])[0], X * 2)


def test_loop_body_is_traced_once_and_then_runs():
    calls = []

    def body(a):
        calls.append(a)
        return a + 1

    model = poptorch.inferenceModel(Calls(lambda x: poptorch.for_loop(3, body, [x])[0]))
    model.compile(X)
    assert len(calls) == 1
    model(X)
    assert len(calls) == 4


def test_an_in_place_loop_body_does_not_change_the_loops_inputs():
    def forward(x):
        y = x * 1
        out = poptorch.for_loop(3, lambda a: a.add_(1), [y])[0]
        return out, y

    out, y = infer(forward, X)
    assert torch.equal(out, X + 3)
    assert torch.equal(y, X)


def test_loop_outputs_do_not_share_memory():
    out = infer(lambda x: poptorch.for_loop(2, lambda a, b: (a, a), [x, x * 5]), X)
    assert out[0].data_ptr() != out[1].data_ptr()
    assert torch.equal(out[1], X)


def test_nested_loops():
    def inner(a):
        return poptorch.for_loop(3, lambda b: b + 1, [a])[0]

    assert torch.equal(infer(lambda x: poptorch.for_loop(2, inner, [x])[0], X), X + 6)


@pytest.mark.parametrize(
    ("count", "body", "inputs", "raised", "message"),
    [
        (2, lambda a: a, X, ValueError, "to be a list of tensors. (Object is not list)"),
        (2, lambda a: a, (X,), ValueError, "to be a list of tensors. (Object is not list)"),
        (2, lambda a, b: a, [X, 5], ValueError, "(Object contained in list at index 1 is not torch.tensor)"),
        (2.0, lambda a: a, [X], RuntimeError, "for argument 'trip_count' but instead found type 'float'"),
        (-1, lambda a: a, [X], poptorch.Error, "a count of -1 is not between 0 and 2147483647"),
        (2**31, lambda a: a, [X], poptorch.Error, "a count of 2147483648 is not between 0"),
        (2, lambda a: (a, a), [X], poptorch.Error, "it takes 1 and returns 2"),
        (2, lambda a: a[:1], [X], poptorch.Error, "output 0 of the body is torch.float32 of shape [1], but its input"),
        (2, lambda a: a.int(), [X], poptorch.Error, "is torch.int32 of shape [2], but its input is torch.float32"),
    ],
    ids=["tensor", "tuple", "number", "count", "negative", "large", "outputs", "shape", "dtype"],
)
def test_invalid_loops_are_refused(count, body, inputs, raised, message):
    with pytest.raises(raised) as caught:
        infer(lambda x: poptorch.for_loop(count, body, inputs)[0], X)
    assert message in str(caught.value)


def test_64_bit_integers_are_the_same_type_as_32_bit_ones():
    counts = torch.tensor([1, 2])
    out = infer(lambda n: poptorch.for_loop(2, lambda a: a.int() + 1, [n])[0], counts)
    assert out.tolist() == [3, 4]


def test_a_loop_is_for_inference_only():
    with pytest.raises(poptorch.Error, match=r"poptorch.for_loop\(\) is only supported in inference"):
        train(lambda x: poptorch.for_loop(2, lambda a: a * 2, [x]), X)


# -------------------------------------------------------------------------------------------- cond


def test_cond_chooses_its_branch_in_each_run():
    def forward(condition, x, y):
        return poptorch.cond(condition, lambda a: a * 10, [x], lambda a, b: a - b, [x, y])

    model = poptorch.inferenceModel(Calls(forward))
    for condition, expected in ((True, X * 10), (False, X - 3), (True, X * 10)):
        out = model(torch.tensor([condition]), X, X * 0 + 3)
        assert isinstance(out, list)
        assert torch.equal(out[0], expected)
        assert torch.equal(forward(torch.tensor([condition]), X, X * 0 + 3)[0], expected)


def test_both_branches_are_traced_and_one_runs():
    calls = []

    def branch(name):
        def body(a):
            calls.append(name)
            return a + 1

        return body

    model = poptorch.inferenceModel(Calls(lambda c, x: poptorch.cond(c, branch("then"), [x], branch("else"), [x])))
    model.compile(torch.tensor([False]), X)
    assert calls == ["then", "else"]
    model(torch.tensor([False]), X)
    assert calls == ["then", "else", "else"]


def test_branches_get_copies_of_their_inputs():
    def forward(condition, x):
        y = x * 1
        out = poptorch.cond(condition, lambda a: a.add_(1), [y], lambda a: a * 1, [y])[0]
        return out, y

    out, y = infer(forward, torch.tensor([True]), X)
    assert torch.equal(out, X + 1)
    assert torch.equal(y, X)


def unchanged(a):
    return a


@pytest.mark.parametrize(
    ("then_body", "else_body", "raised", "message"),
    [
        (lambda a: (a, a), unchanged, poptorch.Error, "must return the same number of tensors: they return 2 and 1"),
        (unchanged, lambda a: a.sum(), poptorch.Error, "`else` branch output has an empty shape"),
        (unchanged, lambda a: a[:1], poptorch.Error, "torch.float32 of shape [2] from then_body, but torch.float32 of"),
        (unchanged, lambda a: a.int(), poptorch.Error, "but torch.int32 of shape [2] from else_body"),
        (unchanged, lambda a: a[None], NotImplementedError, "PopTorch reshapes then_body's outputs: [2] to [1, 2]"),
    ],
    ids=["number", "scalar", "shape", "dtype", "reshape"],
)
def test_invalid_branches_of_cond_are_refused(then_body, else_body, raised, message):
    with pytest.raises(raised) as caught:
        infer(lambda c, x: poptorch.cond(c, then_body, [x], else_body, [x])[0], torch.tensor([True]), X)
    assert message in str(caught.value)


@pytest.mark.parametrize(("then_inputs", "else_inputs"), [((X,), [X]), ([X], X)], ids=["tuple", "tensor"])
def test_cond_takes_its_inputs_as_lists_only(then_inputs, else_inputs):
    with pytest.raises(ValueError, match=r"to be a list of tensors. \(Object is not list\)"):
        poptorch.cond(torch.tensor([True]), unchanged, then_inputs, unchanged, else_inputs)


def test_cond_is_for_inference_only():
    with pytest.raises(poptorch.Error, match=r"poptorch.cond\(\) is only supported in inference"):
        train(lambda c, x: poptorch.cond(c, unchanged, [x], unchanged, [x]), torch.tensor([True]), X)


# ------------------------------------------------------------------------------------- torch.equal


def one_if_equal(a, b):
    return 1 if torch.equal(a, b) else -1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_equal_in_a_loop_has_the_answer_of_the_traced_body_in_each_round(count):
    assert infer(lambda x: poptorch.for_loop(count, lambda a: a + one_if_equal(a, a), [x])[0], X * 0)[0] == -count


@pytest.mark.parametrize("condition", [True, False])
def test_equal_in_a_branch_that_is_not_taken_leaves_later_answers_in_place(condition):
    host = torch.ones(2)

    def forward(c, x):
        y = poptorch.cond(c, lambda a: a + one_if_equal(a, a), [x], lambda a: a + 7, [x])[0]
        return y + (100 if torch.equal(host, host) else 200)

    assert infer(forward, torch.tensor([condition]), X * 0)[0] == (99 if condition else 107)


@pytest.mark.parametrize("condition", [True, False])
def test_equal_in_loops_in_branches_in_loops(condition):
    host = torch.ones(2)

    def branch(step):
        return lambda a: poptorch.for_loop(2, lambda b: b + step * one_if_equal(host, host), [a])[0]

    def body(c, a):
        a = poptorch.cond(c, branch(1), [a], branch(10), [a])[0]
        return c, a + 100 * one_if_equal(host, host) + 1000 * one_if_equal(a, a)

    def forward(c, x):
        return poptorch.for_loop(3, body, [c, x])[1] + 0.5 * one_if_equal(host, host)

    expected = 3 * (2 * (1 if condition else 10) + 100 - 1000) + 0.5
    executor = poptorch.inferenceModel(Calls(forward))
    for _ in range(2):
        assert executor(torch.tensor([condition]), X * 0)[0] == expected

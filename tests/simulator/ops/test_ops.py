"""PopTorch's own operations in the simulator: slices and markers, on host and IPU."""

from __future__ import annotations

import pytest
import torch
from called_ops import Calls, X, infer, message_of, train

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import context

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

MATRIX = torch.arange(24.0).reshape(3, 8)
Modes = poptorch.MatMulSerializationMode


# ------------------------------------------------------------------------------------------ slices


@pytest.mark.parametrize(("dim", "start", "size", "step"), [(1, 2, 4, 1), (1, 0, 8, 3), (-1, 3, 2, 2), (0, 2, 1, 1)])
def test_dynamic_slice_follows_its_start(dim, start, size, step):
    model = poptorch.inferenceModel(Calls(lambda x, s: poptorch.dynamic_slice(x, dim, s, size, step)).eval())
    for first in (0, start):
        expected = MATRIX.narrow(dim, first, size).index_select(dim, torch.arange(0, size, step))
        assert torch.equal(model(MATRIX, torch.tensor([first])), expected)
        assert torch.equal(poptorch.dynamic_slice(MATRIX, dim, torch.tensor([first]), size, step), expected)


@pytest.mark.parametrize(("dim", "start", "size"), [(1, 2, 3), (-1, 5, 3), (0, 1, 2)])
def test_dynamic_update_follows_its_start(dim, start, size):
    model = poptorch.inferenceModel(Calls(lambda x, src, s: poptorch.dynamic_update(x, src, dim, s, size)).eval())
    src = -MATRIX.narrow(dim, 0, size)
    for first in (0, start):
        expected = MATRIX.clone()
        expected.narrow(dim, first, size).copy_(src)
        assert torch.equal(model(MATRIX, src, torch.tensor([first])), expected)
        assert torch.equal(poptorch.dynamic_update(MATRIX, src, dim, torch.tensor([first]), size), expected)


ONE = torch.tensor([1])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("slice", ([1], 0, ONE, 1, 1), "dynamic_slice must take a torch.tensor input. <class 'list'> is not"),
        ("slice", (MATRIX, "0", ONE, 1, 1), "Dimension must be an integer."),
        ("slice", (MATRIX, 0, 1, 1, 1), "Slice start argument to dynamic_slice must be a torch.tensor."),
        ("slice", (MATRIX, 0, ONE, ONE, 1), "Size must be an integer."),
        ("slice", (MATRIX, 0, ONE, 1, 1.0), "Step must be an integer."),
        ("slice", (MATRIX, 1, ONE, 0, 1), "The start and end of a slice must be different."),
        ("slice", (MATRIX, 1, ONE, -2, 1), "Taking a slice of a tensor with the end less than the start is not"),
        ("slice", (MATRIX, 1, ONE, 2, 0), "Slicing step must be at least 1"),
        ("slice", (MATRIX, 1, ONE, 3, 1), "The size of the slice (3) must be a factor of the slicing dimension (8)."),
        ("update", ([1], MATRIX, 0, ONE, 3), "dynamic_update must take a torch.tensor input. <class 'list'>"),
        ("update", (MATRIX, MATRIX, "0", ONE, 3), "Dimension must be an integer."),
        ("update", (MATRIX, MATRIX, 0, 1, 3), "Slice start argument to dynamic_update must be a torch.tensor."),
        ("update", (MATRIX, [1], 0, ONE, 3), "Src argument to dynamic_update must be a torch.tensor. <class 'list'>"),
        ("update", (MATRIX, MATRIX, 0, ONE, ONE), "Size must be an integer."),
        ("update", (MATRIX, X, 0, ONE, 3), "input and src tensors must have same dimensionality. (2) vs (1)"),
        ("update", (MATRIX, MATRIX.long(), 0, ONE, 3), "same dtype. (torch.float32 vs torch.int32)"),
        ("update", (MATRIX, MATRIX, 0, ONE, 0), "The start and end of a slice must be different."),
        ("update", (MATRIX, MATRIX, 0, ONE, -1), "with the end less than the start is not supported."),
    ],
)
def test_invalid_slices_are_refused(name, arguments, message):
    function = getattr(poptorch, "dynamic_" + name)
    assert message in message_of(poptorch.Error, lambda x: function(*arguments) + x, X)


def test_dynamic_update_needs_a_source_of_the_slices_size():
    text = message_of(RuntimeError, lambda x: poptorch.dynamic_update(x, x, 0, x[:1, 0], 2), MATRIX)
    assert "src size = [3, 8], slice size = [2, 8]" in text


def test_on_the_host_the_start_must_be_an_integer():
    with pytest.raises(poptorch.Error, match="Expected integer typed start tensor"):
        poptorch.dynamic_slice(MATRIX, 0, torch.tensor([1.0]), 1, 1)


# ----------------------------------------------------------------------------------------- markers


@pytest.mark.parametrize(("factor", "keep_precision"), [(1, False), (2, True), (4, False)])
@pytest.mark.parametrize("mode", list(Modes), ids=lambda mode: mode.name)
def test_a_serialized_product_equals_the_plain_product(mode, factor, keep_precision):
    lhs, rhs = torch.randn(4, 8), torch.randn(8, 12)
    out = infer(lambda a, b: poptorch.serializedMatMul(a, b, mode, factor, keep_precision), lhs, rhs)
    assert torch.allclose(out, lhs @ rhs)


@pytest.mark.parametrize(
    ("mode", "factor", "message"),
    [
        (Modes.InputChannels, 3, "LHS input, shape [4, 8], index 0 must be divisible by factor 3"),
        (Modes.ReducingDim, 3, "LHS input, shape [4, 8], index 1 must be divisible by factor 3"),
        (Modes.OutputChannels, 5, "RHS input, shape [8, 12], index 1 must be divisible by factor 5"),
        (Modes.OutputChannels, 0, "must be divisible by factor 0"),
    ],
    ids=["input", "reducing", "output", "zero"],
)
def test_a_product_must_split_evenly(mode, factor, message):
    lhs, rhs = torch.randn(4, 8), torch.randn(8, 12)
    assert message in message_of(poptorch.Error, lambda a, b: poptorch.serializedMatMul(a, b, mode, factor), lhs, rhs)


def test_a_serialized_product_needs_matrices():
    text = message_of(poptorch.Error, lambda a: poptorch.serializedMatMul(a, a, Modes.InputChannels, 2), X)
    assert "LHS Input: must have rank 2 or 3 for matmul serialization." in text


@pytest.mark.parametrize("arguments", [("input_channels",), (Modes.Disabled, 1.0), (Modes.Disabled, 1, 1)])
def test_serialized_products_check_their_arguments(arguments):
    with pytest.raises(AssertionError):
        poptorch.serializedMatMul(MATRIX, MATRIX.T, *arguments)


MARKERS = {
    "memory": lambda x: poptorch.set_available_memory(x, 0.3),
    "checkpoint": poptorch.recomputationCheckpoint,
    "nop": poptorch.nop,
    "print": lambda x: poptorch.ipu_print_tensor(x, "x", print_gradient=False),
}


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_markers_do_not_change_values_or_gradients(marker):
    assert torch.equal(marker(X), X)
    assert torch.equal(infer(lambda x: marker(x) * 2, X), X * 2)
    out, weight = train(marker, X)
    assert torch.equal(out, X)
    assert float(weight) == pytest.approx(1 - 0.01 * 3)  # the default SGD; the gradient is 1 + 2


def test_name_scopes_do_not_change_outputs():
    def forward(x):
        with poptorch.NameScope("scope"):
            return x * 2

    assert torch.equal(infer(forward, X), X * 2)
    with pytest.raises(AssertionError, match="Parameter to NameScope must be a string"):
        poptorch.NameScope(5)


def test_checkpoints_are_recorded_in_the_graph():
    graphs = []

    def forward(x):
        out = sum(poptorch.recomputationCheckpoint(x * 2, x * 3))
        graphs.append(context.current.trace.graph if context.current.trace else None)
        return out

    infer(forward, X)
    assert len(graphs[0].checkpoints) == 2
    assert graphs[1] is None  # there is no trace while the model runs


def test_checkpoints_keep_the_structure_of_their_inputs():
    one, two = poptorch.recomputationCheckpoint(X, X + 1)
    listed = poptorch.recomputationCheckpoint([X, X + 1])
    assert isinstance(listed, list)
    assert torch.equal(listed[1], two)
    assert torch.equal(one, X)


@pytest.mark.parametrize(
    ("function", "raised", "message"),
    [
        (lambda x: poptorch.nop(5), poptorch.Error, "nop must take a torch.tensor argument. <class 'int'> is not"),
        (lambda x: poptorch.set_available_memory(5, 0.3), poptorch.Error, "You may only set available memory for"),
        (lambda x: poptorch.set_available_memory(x, 0.0), poptorch.Error, "must be in (0,1]"),
        (lambda x: poptorch.set_available_memory(x, 1.1), poptorch.Error, "must be in (0,1]"),
        (lambda x: poptorch.recomputationCheckpoint(x, 5), ValueError, "All inputs must be tensors"),
        (lambda x: poptorch.recomputationCheckpoint([x, [x]]), ValueError, "All inputs must be tensors"),
        (lambda x: poptorch.identity_loss(x, "max"), AssertionError, "Unsupported reduction type!"),
        (lambda x: poptorch.ipu_print_tensor(5), poptorch.Error, "ipu print tensor must take a torch.tensor argument"),
        (lambda x: poptorch.ipu_print_tensor(x, float_format="long"), KeyError, "long"),
    ],
    ids="nop memory zero above checkpoint nested loss print format".split(),
)
def test_invalid_arguments_of_markers_are_refused(function, raised, message):
    assert message in message_of(raised, function, X)


# ------------------------------------------------------------------------------------- the submodule


def test_poptorch_ops_has_the_names_of_the_package():
    assert all(getattr(poptorch.ops, name) is getattr(poptorch, name) for name in poptorch.ops.__all__)
    assert len(poptorch.ops.__all__) == 24

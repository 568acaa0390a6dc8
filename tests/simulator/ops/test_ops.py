"""PopTorch's own operations in the simulator: slices, markers, convolutions and host operations, on host and IPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import context

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

X = torch.tensor([1.0, 2.0])
MATRIX = torch.arange(24.0).reshape(3, 8)
Modes, Plan = poptorch.MatMulSerializationMode, poptorch.MultiConvPlanType


class Calls(nn.Module):
    """A model whose forward is a function; in training, the first input is multiplied by a weight of one."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        if not self.training:
            return self.function(*inputs)
        out = self.function(inputs[0] * self.weight, *inputs[1:])
        return out, poptorch.identity_loss(out, "sum")


def infer(function, *inputs):
    return poptorch.inferenceModel(Calls(function).eval())(*inputs)


def train(function, *inputs):
    model = Calls(function).train()
    return poptorch.trainingModel(model)(*inputs)[0], model.weight


def message_of(raised, function, *inputs):
    with pytest.raises(raised) as caught:
        infer(function, *inputs)
    return str(caught.value)


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


# --------------------------------------------------------------------------------------- MultiConv


def two_convolutions(multi_conv):
    first, second = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)

    def forward(x, a, b):
        with multi_conv:
            return torch.conv2d(x, a) - torch.conv2d(x, b)

    image = torch.randn(1, 1, 5, 5)
    return infer(forward, image, first, second), torch.conv2d(image, first) - torch.conv2d(image, second)


ALL_OPTIONS = (
    poptorch.MultiConv()
    .availableMemoryProportions((0.8, 0.7))
    .partialsTypes([torch.float, torch.half])
    .enableConvDithering(True)
    .planType(Plan.Serial)
    .perConvReservedTiles(120)
    .cycleBackOff(0.4)
)
NO_OPTIONS = poptorch.MultiConv().availableMemoryProportions(None).enableConvDithering(None).planType(None)


@pytest.mark.parametrize("multi_conv", [ALL_OPTIONS, NO_OPTIONS], ids=["all", "none"])
def test_a_multi_convolution_equals_its_convolutions(multi_conv):
    for out, expected in (two_convolutions(multi_conv), two_convolutions(multi_conv)):
        assert torch.allclose(out, expected)


@pytest.mark.parametrize(
    ("multi_conv", "message"),
    [
        (poptorch.MultiConv().availableMemoryProportions(1.5), "availableMemoryProportion must be in (0,1]"),
        (poptorch.MultiConv().availableMemoryProportions([0.1] * 3), "has 3 available memory proportions for 2 conv"),
        (poptorch.MultiConv().partialsTypes([torch.half] * 3), "has 3 partials types for 2 convolutions"),
        (poptorch.MultiConv().enableConvDithering([True] * 3), "has 3 ditherings for 2 convolutions"),
    ],
    ids=["range", "memory", "partials", "dithering"],
)
def test_options_must_match_the_convolutions(multi_conv, message):
    with pytest.raises(poptorch.Error) as caught:
        two_convolutions(multi_conv)
    assert message in str(caught.value)


def nested(x):
    with poptorch.MultiConv(), poptorch.MultiConv():
        return x


def without_convolution(x):
    with poptorch.MultiConv():
        return x * 2


def test_nested_and_empty_multi_convolutions_are_refused():
    assert "Nested poptorch.MultiConv is not supported" in message_of(poptorch.Error, nested, X)
    assert "Unexpected end_multi_conv" in message_of(poptorch.Error, without_convolution, X)
    assert torch.equal(without_convolution(X), X * 2)  # on the host


@pytest.mark.parametrize(
    ("set_option", "raised", "message"),
    [
        (lambda m: m.availableMemoryProportions(1), AssertionError, "Invalid available memory proportion!"),
        (lambda m: m.availableMemoryProportions([]), AssertionError, "Invalid available memory proportion!"),
        (lambda m: m.partialsTypes("half"), ValueError, "Invalid partials types. Expecting torch.float or torch.half"),
        (lambda m: m.partialsTypes([torch.int32]), ValueError, "Invalid partials types."),
        (lambda m: m.enableConvDithering([True, 1]), ValueError, "value must be bool or list of bools"),
        (lambda m: m.planType("parallel"), AssertionError, "Invalid plan type!"),
        (lambda m: m.perConvReservedTiles(1.0), AssertionError, ""),
        (lambda m: m.cycleBackOff(1), AssertionError, ""),
    ],
    ids="memory memory-list partials partials-list dithering plan tiles cycles".split(),
)
def test_invalid_options_of_multi_convolutions_are_refused(set_option, raised, message):
    with pytest.raises(raised) as caught:
        set_option(poptorch.MultiConv())
    assert message in str(caught.value)


# --------------------------------------------------------------------------------- on the host, C++


def test_a_cpu_op_runs_on_the_host():
    seen = []

    def on_host(x, y):
        seen.append((x.device.type, poptorch.isRunningOnIpu(), x.tolist()))
        return poptorch.identity_loss(x, "none") * y, x + y

    op = poptorch.CPU(on_host, "op")
    product, total = infer(lambda x: op(x + 1, x), X)
    assert torch.equal(product, (X + 1) * X)
    assert torch.equal(total, X * 2 + 1)
    assert seen == [("cpu", False, [0.0, 0.0]), ("cpu", False, [2.0, 3.0])]  # traced with zeros
    assert op.in_shapes == op.out_shapes == [X.shape, X.shape]


def test_a_cpu_op_of_a_module_has_constant_parameters():
    layer = nn.Linear(2, 3)
    op = poptorch.CPU(layer, "linear")
    assert not layer.weight.requires_grad
    assert torch.allclose(infer(op, X), layer(X))
    assert torch.equal(op(X), layer(X))
    op.registerPersistentData()
    op.inputs[0].copy_(X)
    op.execute()
    assert torch.equal(op.outputs[0], layer(X))


def test_cpu_ops_are_not_simulated_in_training():
    op = poptorch.CPU(lambda x: x, "MyOp")
    with pytest.raises(NotImplementedError, match="poptorch.CPU in training is not simulated .the CPU op 'MyOp'"):
        train(op, X)


def test_custom_ops_are_not_simulated():
    def cube(x, **named):
        return poptorch.custom_op([x], "Cube", "com.acme", 1, example_outputs=[x], **named)

    assert torch.equal(cube(X, attributes={"alpha": 1.0, "names": ["a", "b"]})[0], torch.zeros(2))  # on the host
    text = message_of(NotImplementedError, lambda x: cube(x)[0], X)
    assert "poptorch.custom_op is not simulated (the custom op 'Cube' of domain 'com.acme')" in text


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({1: 1}, "All attribute keys must be strings."),
        ({"a": None}, "Attribute values must be floats, ints, strings or a list/tuple of float, ints of strings."),
        ({"a": [1, 2.0]}, "The types in a list/tuple attribute must all be the same."),
        ({"ä": 1}, "ä contains non-ASCII characters."),
        ({"a": ["ok", "ö"]}, "ö contains non-ASCII characters."),
    ],
    ids=["key", "value", "types", "ascii-key", "ascii-value"],
)
def test_invalid_attributes_of_custom_ops_are_refused(attributes, message):
    with pytest.raises(ValueError) as caught:
        poptorch.custom_op([X], "Cube", "com.acme", 1, [X], attributes)
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------- the submodule


def test_poptorch_ops_has_the_names_of_the_package():
    assert all(getattr(poptorch.ops, name) is getattr(poptorch, name) for name in poptorch.ops.__all__)
    assert len(poptorch.ops.__all__) == 24

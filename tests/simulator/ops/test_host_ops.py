"""poptorch.CPU and poptorch.custom_op: operations that run on the host or need C++ code."""

from __future__ import annotations

import pytest
import torch
from called_ops import X, infer, message_of, train
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


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

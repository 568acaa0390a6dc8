"""The operations torch.ops.poptorch.*, which programs call without PopTorch's Python functions."""

from __future__ import annotations

import re

import pytest
import torch
from simulated import options
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

# The names that TORCH_LIBRARY(poptorch, m) defines (dispatch_tracer/RegisterAtenOverloads.cpp:886-956).
NAMES = (
    "begin_ipu_block end_ipu_block start_for_loop start_if_block start_else_block optimizer_group begin_multi_conv "
    "end_multi_conv push_name_scope pop_name_scope set_attribute clear_attribute ipu_print_tensor nop end_for_loop "
    "end_if_block set_matmul_serialization set_overlap_for_input set_overlap_for_output recomputation_checkpoint "
    "set_available_memory custom_operation ctc_beam_search_decoder dynamic_slice dynamic_update identity_loss "
    "internal_cast end_cpu_op call_cpu_op fps nearest nearest_batch_list"
).split()


@pytest.fixture(scope="module")
def ops():
    poptorch.install()
    return torch.ops.poptorch


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def on_ipu(function, *inputs):
    return poptorch.inferenceModel(Function(function))(*inputs)


def test_every_operation_is_there(ops):
    assert [name for name in NAMES if not callable(getattr(ops, name, None))] == []
    assert not hasattr(ops, "no_such_operation")


def test_name_scopes_in_hooks_have_no_effect(ops):
    """As in graphcore/examples, vision/cnns/pytorch/models/models.py."""
    model = nn.Linear(2, 2)
    model.register_forward_pre_hook(lambda module, inputs: ops.push_name_scope("layer"))
    model.register_forward_hook(lambda module, inputs, output: ops.pop_name_scope())
    x = torch.ones(1, 2)
    with torch.no_grad():
        assert torch.equal(poptorch.inferenceModel(model)(x), model(x))


def test_internal_cast_converts_on_the_ipu_and_only_to_float32_on_the_host(ops):
    x = torch.tensor([1 / 3, 2.0])
    assert torch.equal(on_ipu(lambda t: ops.internal_cast(t, "FLOAT16"), x), x.half())
    assert on_ipu(lambda t: ops.internal_cast(t, "FLOAT"), x.half()).dtype == torch.float32
    assert ops.internal_cast(x.half(), "FLOAT16").dtype == torch.float32
    assert ops.internal_cast(x.half(), "FLOAT").dtype == torch.float16
    with pytest.raises(poptorch.Error, match=r"internal_cast: dtype 'FLOAT8' does not exist; use one of \['BOOL'"):
        on_ipu(lambda t: ops.internal_cast(t, "FLOAT8"), x)


@pytest.mark.parametrize(("number", "expected"), [(0, 6.0), (1, 2.0)])
def test_identity_loss_takes_the_number_of_a_reduction(ops, number, expected):
    weight = nn.Parameter(torch.zeros(3))

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return ops.identity_loss(x + self.weight, number)

    assert poptorch.trainingModel(Loss(), options(G=1))(torch.tensor([1.0, 2.0, 3.0])) == expected
    with pytest.raises(poptorch.Error, match="identity_loss: reduction 3 does not exist; use 0, 1 or 2"):
        ops.identity_loss(torch.ones(1), 3)


def test_blocks_place_operations(ops):
    def forward(x):
        ops.begin_ipu_block(0, 0, 0)
        x = x * 2
        ops.end_ipu_block()
        ops.begin_ipu_block(1, 0, 1)
        x = x + 1
        ops.end_ipu_block()
        return x

    executor = poptorch.inferenceModel(Function(forward), poptorch.Options().deviceIterations(2))
    assert executor(torch.ones(2)).tolist() == [3.0, 3.0]
    assert len(executor.simulation_report().ipus) == 2


def test_operations_on_tensors_equal_the_public_functions(ops, capsys):
    x = torch.arange(6.0).reshape(2, 3)

    def forward(x):
        x = ops.set_available_memory(ops.recomputation_checkpoint(ops.nop(x)), 0.5)
        x = ops.set_overlap_for_output(ops.set_overlap_for_input(x, "no_overlap"), "no_overlap")
        return ops.ipu_print_tensor(x, "shown", 1, 1000, 3, 80, 4, 1, ",", "(", ")")

    assert torch.equal(forward(x), x)
    assert torch.equal(on_ipu(lambda t: ops.ipu_print_tensor(t, "shown", 1, 1000, 3, 80, 4, 1, ",", "(", ")"), x), x)
    assert "shown: (" in capsys.readouterr().err
    start = torch.tensor([1])
    assert torch.equal(on_ipu(lambda t, s: ops.dynamic_slice(t, 1, s, 1, 1), x, start), x[:, 1:2])
    points, others = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.9], [0.2]])
    assert on_ipu(lambda a, b: ops.nearest_batch_list(a, b, [], []), points, others).tolist() == [1, 0]
    assert ops.set_attribute("a", "b", "c") is ops.clear_attribute("a", "b") is None
    with pytest.raises(NotImplementedError, match="poptorch.custom_op is not simulated"):
        on_ipu(lambda t: ops.custom_operation([t], "Cube", "custom", 1, 1, [t], "")[0], x)
    assert torch.equal(ops.custom_operation([x], "Cube", "custom", 1, 1, [x], "")[0], torch.zeros_like(x))
    assert [tuple(out.shape) for out in ops.ctc_beam_search_decoder(torch.ones(4, 1, 3), start, 0, 2, 2)] == [
        (1, 2),
        (1, 2),
        (1, 2, 4),
    ]


PAIRS = {
    "start_for_loop": "poptorch.for_loop",
    "end_for_loop": "poptorch.for_loop",
    "start_if_block": "poptorch.cond",
    "start_else_block": "poptorch.cond",
    "end_if_block": "poptorch.cond",
    "begin_multi_conv": "poptorch.MultiConv",
    "end_multi_conv": "poptorch.MultiConv",
    "call_cpu_op": "poptorch.CPU",
    "end_cpu_op": "poptorch.CPU",
    "set_matmul_serialization": "poptorch.serializedMatMul",
    "optimizer_group": "the optimizer given to poptorch.trainingModel",
}


@pytest.mark.parametrize(("name", "instead"), list(PAIRS.items()))
def test_operations_in_pairs_are_refused_on_the_ipu_and_do_nothing_on_the_host(ops, name, instead):
    x = torch.ones(1)
    operation = getattr(ops, name)
    more = [None] * (len(operation._schema.arguments) - 1)
    given = [x, *more] if operation._schema.arguments else []
    returns_first = (name.startswith("end_") and name != "end_multi_conv") or name == "set_matmul_serialization"
    assert operation(*given) is (x if returns_first else None)
    message = re.escape(f"torch.ops.poptorch.{name} is not simulated on the IPU: use {instead}")
    with pytest.raises(NotImplementedError, match=message):
        on_ipu(lambda t: operation(*given) or t, x)


def test_operations_take_their_arguments_by_the_names_of_poptorchs_schemas(ops):
    x, start = torch.arange(6.0).reshape(2, 3), torch.tensor([1])
    assert torch.equal(on_ipu(lambda t: ops.set_available_memory(mem=0.5, t=ops.nop(self=t)), x), x)
    assert torch.equal(on_ipu(lambda t, s: ops.dynamic_slice(t, dim=1, start=s, size=1, step=1), x, start), x[:, 1:2])
    updated = on_ipu(lambda t, s: ops.dynamic_update(self=t, src=t[:, :1], dim=1, start=s, size=1), x, start)
    assert updated.tolist() == [[0, 0, 2], [3, 3, 5]]
    assert ops.end_for_loop([x], inputs=[x], trip_count=2) == [x]
    assert torch.equal(ops.nop.default(x), x)
    assert str(ops.set_overlap_for_input.default._schema) == (
        "poptorch::set_overlap_for_input(Tensor t, str mode) -> Tensor"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ops: ops.nop(), "poptorch::nop() is missing value for argument 'self'. Declaration: poptorch::nop("),
        (lambda ops: ops.nop(input=1), "poptorch::nop() is missing value for argument 'self'. Declaration:"),
        (lambda ops: ops.nop(1, 2), "poptorch::nop() expected at most 1 argument(s) but received 2 argument(s)."),
        (lambda ops: ops.nop(1, self=2), "poptorch::nop() expected at most 1 argument(s) but received 2 argument(s)."),
        (lambda ops: ops.nop(self=1, out=2), "poptorch::nop() expected at most 1 argument(s) but received 2"),
    ],
)
def test_arguments_that_the_schema_lacks_are_refused(ops, call, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call(ops)


def test_an_unknown_operation_is_named(ops):
    with pytest.raises(AttributeError, match="torch.ops.poptorch has no operation 'no_such_operation'"):
        ops.no_such_operation  # noqa: B018

"""Options.Precision.enableFloatingPointExceptions(True): what raises, and what may not."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

INFINITY, NAN = float("inf"), float("nan")
ONES = torch.ones(2, 2)


class Function(nn.Module):
    """A model whose forward is a function; in training, its weight is multiplied by the function's result."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(()))

    def forward(self, *inputs):
        if self.training:
            return poptorch.identity_loss(self.function(self.weight * inputs[0]), "sum")
        return self.function(*inputs)


def made(enabled=True):
    made = poptorch.Options()
    made.Precision.enableFloatingPointExceptions(enabled)
    return made


def infer(function, *inputs, enabled=True):
    return poptorch.inferenceModel(Function(function).eval(), made(enabled))(*inputs)


RAISING = {
    "1 / 0": (lambda x: x / (x - x), [ONES], "aten.div.Tensor makes an infinity of inputs without"),
    "1 / 0 of integers": (lambda x: x / (x - x), [ONES.int()], "aten.div.Tensor makes an infinity"),
    "1 / 0 in place": (lambda x: x.clone().div_(0), [ONES], "aten.div_.Tensor makes an infinity"),
    "beside an infinity": (lambda x: 1 / x, [torch.tensor([INFINITY, 0.0])], "makes an infinity"),
    "0 / 0": (lambda x: x / x, [ONES * 0], "aten.div.Tensor makes NaN of inputs without"),
    "0 * inf": (lambda x, y: x * y, [ONES * 0, ONES * INFINITY], "aten.mul.Tensor makes NaN"),
    "inf - inf": (lambda x: x - x, [ONES * INFINITY], "aten.sub.Tensor makes NaN"),
    "root": (lambda x: x.sqrt(), [-ONES], "aten.sqrt.default makes NaN"),
    "logarithm": (lambda x: x.log(), [ONES * 0], "aten.log.default makes an infinity"),
    "exponential": (lambda x: x.exp(), [ONES * 3800], "aten.exp.default makes an infinity"),
    "product": (lambda x: x @ x, [ONES * 3e38], "aten.mm.default makes an infinity"),
    "comparison": (lambda x: x > 1, [ONES * NAN], "aten.gt.Scalar compares NaN"),
    "comparison with a number": (lambda x: x == NAN, [ONES], "aten.eq.Scalar compares NaN"),
    "all masked": (lambda x: x.masked_fill(x > 0, -INFINITY).softmax(1), [ONES], "softmax.default makes NaN"),
}


@pytest.mark.parametrize(("function", "inputs", "message"), RAISING.values(), ids=RAISING.keys())
def test_operations_that_raise(function, inputs, message):
    with pytest.raises(poptorch.Error, match=re.escape(message)) as caught:
        infer(function, *inputs)
    assert caught.value.type == "poplar_application_runtime_error"
    assert str(caught.value).startswith("'poplar_application_runtime_error': Floating-point exception: aten.")
    assert str(caught.value).endswith(
        "; mend the operation, or turn off Options.Precision.enableFloatingPointExceptions"
    )
    without, native = infer(function, *inputs, enabled=False), function(*inputs)
    torch.testing.assert_close(without, native, equal_nan=True)


ALLOWED = {
    "finite": lambda x: (x * 2 + 1).exp().log_softmax(1),
    "masked": lambda x: x.masked_fill(torch.ones(2, 2).triu(1) > 0, -INFINITY).logsumexp(0),
    "mask added": lambda x: (x + torch.full((2, 2), -INFINITY).triu(1)).softmax(1),
    "where": lambda x: torch.where(x > 1, x, -INFINITY).amax(1),
    "buffer": lambda x: x.new_empty(2, 2).fill_(INFINITY).clamp(max=1.0),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], torch.ones(1, 2, 2).tril() > 0),
    "ctc": lambda x: F.ctc_loss(x.repeat(3, 1)[:, None].log_softmax(2), torch.ones(1, 1).int(), (6,), (1,)),
    "infinity through": lambda x: (x * INFINITY + 1).reciprocal(),
    "isnan": lambda x: (x * torch.tensor(NAN)).isnan().float(),
}


@pytest.mark.parametrize("function", ALLOWED.values(), ids=ALLOWED.keys())
def test_infinities_and_nans_of_constants_and_inputs_do_not_raise(function):
    torch.testing.assert_close(infer(function, ONES), function(ONES))


def test_a_backward_pass_raises():
    """The root of 0 is 0, and its derivative is infinite."""
    model = Function(lambda x: x.sqrt())
    executor = poptorch.trainingModel(model, made(), poptorch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(poptorch.Error, match="aten.div.Tensor makes an infinity of inputs without"):
        executor(torch.zeros(2))


@pytest.mark.parametrize("numerics", ["exact", "ipu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_training_within_range_does_not_raise_and_is_unchanged(numerics, dtype):
    weights = []
    with poptorch.numerics(numerics):
        for enabled in (False, True):
            torch.manual_seed(0)
            model = TwoStages().to(dtype)
            checked = options(G=4)
            checked.Precision.enableFloatingPointExceptions(enabled)
            optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01, loss_scaling=8.0)
            executor = poptorch.trainingModel(model, checked, optimizer)
            for step in range(2):
                executor(*data(8, seed=step, dtype=dtype))
            weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    rounding = 1e-6 if numerics == "exact" else 0.0  # without checks, micro-batches pass together
    torch.testing.assert_close(weights[1], weights[0], rtol=rounding, atol=rounding)


def test_float16_overflow_raises_with_an_ipus_numerics_and_is_clipped_without():
    x = torch.tensor([300.0]).half()
    with poptorch.numerics("ipu"):
        assert infer(lambda x: x * x, x, enabled=False) == 65504
        message = "Floating-point exception: 90000 does not fit in float16 (at most 65504); mend the operation"
        for function in (lambda x: x * x, lambda x: (x.float() ** 2).half(), lambda x: x.clone().mul_(x)):
            with pytest.raises(poptorch.Error, match=re.escape(message)):
                infer(function, x)


def test_an_update_of_float16_weights_that_overflows_raises_with_an_ipus_numerics():
    model = Function(lambda x: x * 100).half()
    with poptorch.numerics("ipu"):
        executor = poptorch.trainingModel(model, made(), poptorch.optim.SGD(model.parameters(), lr=1e4))
        with pytest.raises(poptorch.Error, match="does not fit in float16"):
            executor(torch.ones(1).half())


def test_the_ipu_model_has_no_floating_point_exceptions(caplog):
    without = made().useIpuModel(True)
    assert poptorch.inferenceModel(Function(lambda x: x / 0).eval(), without)(ONES).isinf().all()
    assert "Floating point checks cannot be enabled for non IPU devices" in caplog.messages

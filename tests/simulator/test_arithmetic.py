"""The simulator's float16 arithmetic: partial sums, formats of results, and the choice of numerics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from simulated import half
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.arithmetic.half_mode import HalfArithmetic
from vit_ipu.simulator.arithmetic.mode import chosen
from vit_ipu.simulator.arithmetic.products import Partials, convolution, convolution_backward
from vit_ipu.simulator.arithmetic.rounding import Rounding

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


# --------------------------------------------------------------------------------------- partials


def partials(chunk=16):
    return Partials(half_products=True, half_convolutions=True, chunk=chunk, rounding=Rounding())


def slow_product(left, right, chunk):
    """Multiplies scalar by scalar: adds a chunk's products to the running sum in float32, then rounds the sum."""
    result = torch.zeros(left.shape[0], right.shape[1])
    for i in range(left.shape[0]):
        for j in range(right.shape[1]):
            total = 0.0
            for start in range(0, left.shape[1], chunk):
                ks = range(start, min(start + chunk, left.shape[1]))
                total += math.fsum(float(left[i, k]) * float(right[k, j]) for k in ks)
                total = float(torch.tensor(total, dtype=torch.float32).half())
            result[i, j] = total
    return result


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_float16_partials_equal_a_slow_reference(chunk):
    left, right = half(5, 70), half(70, 4, seed=1)
    got = partials(chunk).product(torch.mm, left, right).float()
    expected = slow_product(left, right, chunk)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)  # float32 may break a tie differently
    assert (got == expected).float().mean() > 0.9
    assert not torch.equal(got, left.float() @ right.float())


def test_a_long_sum_stalls_with_float16_partials_only():
    ones = torch.ones(1, 65536).half()
    full = Partials(half_products=False, half_convolutions=False, chunk=16, rounding=Rounding())
    assert full.product(torch.mm, ones, ones.t()).item() == 65536
    assert partials().product(torch.mm, ones, ones.t()).item() == 32768  # 16 is half of float16's spacing at 32768


def test_float16_partials_of_a_convolution_equal_those_of_a_product():
    image, weight, gradient = half(2, 3, 9, 8), half(4, 3, 3, 2, seed=1), half(2, 4, 5, 4, seed=2)
    settings = ([2, 2], [1, 0], [1, 1], False, [0, 0], 1)
    got = convolution(partials(), image, weight, *settings).float()
    columns = F.unfold(image.float(), (3, 2), stride=2, padding=(1, 0))
    first = slow_product(weight.flatten(1), columns[0].half(), 16).reshape(4, 5, 4)
    torch.testing.assert_close(got[0], first, rtol=2e-3, atol=1e-3)
    exact = F.conv2d(image.float(), weight.float(), stride=2, padding=(1, 0))
    torch.testing.assert_close(got, exact, rtol=2e-2, atol=2e-2)
    back = convolution_backward(partials(), gradient, image, weight, None, *settings, [True, True, True])
    reference = torch.ops.aten.convolution_backward(
        gradient.float(), image.float(), weight.float(), [4], *settings, [True, True, True]
    )
    for ours, theirs in zip(back, reference):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=4e-2)


@pytest.mark.parametrize(
    "settings", [([1], [0], [1], True, [0], 1), ([1], [0], [1], False, [0], 2)], ids=["transposed", "grouped"]
)
def test_float16_partials_of_other_convolutions_are_refused(settings):
    with pytest.raises(NotImplementedError, match="transposed, grouped or 3-D"):
        convolution(partials(), half(1, 4, 8), half(4, 4, 3), *settings)


def in_mode(function, *, options=None, chunk=16):
    with poptorch.numerics("ipu", partials_chunk=chunk):
        from vit_ipu.simulator.arithmetic.mode import chosen

        mode = HalfArithmetic.of(options or poptorch.Options(), chosen())
    with mode:
        return function()


def test_partials_of_products_and_convolutions_have_separate_options():
    ones = torch.ones(1, 65536).half()
    options = poptorch.Options()
    options.Precision.setPartialsType(torch.half)
    assert in_mode(lambda: ones @ ones.t(), options=options).item() == 32768
    image, kernel = torch.ones(1, 4096, 1, 1).half(), torch.ones(1, 4096, 1, 1).half()
    assert in_mode(lambda: F.conv2d(image, kernel), options=options, chunk=1).item() == 2048
    options.Training.setConvolutionDithering(True)  # replaces the options of convolutions
    assert in_mode(lambda: F.conv2d(image, kernel), options=options, chunk=1).item() == 4096


# ------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda h, f: h + h, torch.float16),
        (lambda h, f: h + f, torch.float32),
        (lambda h, f: h * torch.tensor(2.0), torch.float16),
        (lambda h, f: h.sum() + torch.tensor(2.0), torch.float32),
        (lambda h, f: h @ f.t(), torch.float16),
        (lambda h, f: f @ h.t(), torch.float32),
        (lambda h, f: F.softmax(h, 1), torch.float16),
        (lambda h, f: F.softmax(h, 1, dtype=torch.float32), torch.float32),
        (lambda h, f: F.layer_norm(h, (4,)), torch.float16),
        (lambda h, f: f.half(), torch.float16),
        (lambda h, f: h.double(), torch.float32),
        (lambda h, f: torch.zeros(3, dtype=torch.float64), torch.float32),
        (lambda h, f: torch.full((2,), 3.0, dtype=torch.float16), torch.float16),
        (lambda h, f: torch.cat([h, h]), torch.float16),
        (lambda h, f: h.argmax(), torch.int64),
        (lambda h, f: h > 0, torch.bool),
    ],
)  # fmt: skip
def test_results_have_the_dtypes_of_an_ipu(function, dtype):
    assert in_mode(lambda: function(half(4, 4), half(4, 4).float())).dtype == dtype


def test_a_copy_draws_no_random_bits_unless_it_rounds():
    """Python's garbage collector decides whether autograd copies a gradient: a copy must not change the results."""
    options = poptorch.Options().randomSeed(1)
    options.Precision.enableStochasticRounding(True)
    values, target = half(4, 4), torch.zeros(4, 4).half()
    with poptorch.numerics("ipu"):
        from vit_ipu.simulator.arithmetic.mode import chosen

        mode = HalfArithmetic.of(options, chosen())
    before = mode.rounding.state.clone()
    with mode:
        target.copy_(values)
        torch.zeros(4, 4).copy_(values)
    assert torch.equal(target, values)
    assert torch.equal(mode.rounding.state, before)
    with mode:
        target.copy_(values.float() + 1e-4)
    assert target.dtype == torch.float16
    assert not torch.equal(mode.rounding.state, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gelu_always_uses_the_tanh_form(dtype):
    x = (torch.linspace(-4, 4, 99) + 0.01).to(dtype).requires_grad_()
    in_mode(lambda: F.gelu(x).sum().backward())
    reference = x.detach().float().requires_grad_()
    F.gelu(reference, approximate="tanh").sum().backward()
    torch.testing.assert_close(x.grad, reference.grad.to(dtype), rtol=0, atol=0)


def test_in_place_operations_write_rounded_values_and_keep_the_tensor():
    x = torch.full((3,), 2048.0).half()
    result = in_mode(lambda: x.add_(1.0))
    assert result is x
    assert x.tolist() == [2048.0] * 3
    in_mode(lambda: x.fill_(1e6))
    assert x.tolist() == [65504.0] * 3


def test_dropout_has_the_same_mask_as_in_exact_numerics():
    x = torch.ones(1000)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(0)
    options = poptorch.Options()
    options.Precision.enableStochasticRounding(True)
    got = in_mode(lambda: F.dropout(x.half(), 0.3), options=options)
    assert torch.equal(got == 0, expected == 0)


def test_batch_norm_updates_its_float16_statistics():
    norm = nn.BatchNorm1d(3).half()
    x = 5 + half(64, 3)
    in_mode(lambda: norm(x))
    assert norm.running_mean.dtype == torch.float16
    torch.testing.assert_close(norm.running_mean, 0.1 * x.float().mean(0).half(), rtol=1e-2, atol=1e-2)


# ---------------------------------------------------------------------------------------- choices


def test_numerics_apply_to_executors_compiled_within_the_context_only():
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.constant_(model.weight, 1.0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, x):
            return (self.layer(x) + 2048) - 2048

    x = torch.ones(1, 1).half()
    exact = poptorch.inferenceModel(Twice())
    assert exact(x).item() == 1
    with poptorch.numerics("ipu"):
        assert poptorch.inferenceModel(Twice())(x).item() == 0
        assert exact(x).item() == 1
    assert poptorch.inferenceModel(Twice())(x).item() == 1


def test_numerics_can_be_read_and_keep_the_chunk_of_partial_sums():
    with poptorch.numerics("ipu", partials_chunk=4):
        assert poptorch.numerics.current() == "ipu"
        with poptorch.numerics("exact"):
            assert poptorch.numerics.current() == "exact"
            assert chosen().partials_chunk == 4
    assert (poptorch.numerics.current(), chosen().partials_chunk) == ("exact", 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("fast", 16), "Unknown numerics 'fast': choose one of exact, ipu"), (("ipu", 0), "must be at least 1")],
    ids=["mode", "chunk"],
)
def test_invalid_numerics_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        poptorch.numerics(arguments[0], partials_chunk=arguments[1])


def test_float64_is_computed_in_float32():
    model = nn.Linear(2, 2).double()
    x = torch.full((1, 2), 1 / 3, dtype=torch.float64)
    with poptorch.numerics("ipu"):
        executor = poptorch.inferenceModel(model)
        out = executor(x)
    torch.testing.assert_close(out, model.float()(x.float()), rtol=0, atol=0)

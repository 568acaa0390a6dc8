"""Rounding to float16 and its random bits: compiled functions give the bits of plain torch, which are checked here."""

from __future__ import annotations

import math

import pytest
import torch
from simulated import half

from vit_ipu.simulator.arithmetic.compiled import host_kernels, kernels_for, own_folder
from vit_ipu.simulator.arithmetic.products import Partials
from vit_ipu.simulator.arithmetic.random_bits import Operation, words_of
from vit_ipu.simulator.arithmetic.rounding import Rounding

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

SMALLEST = 2.0**-24


def spacing(value):
    return max(2.0 ** (math.floor(math.log2(abs(value))) - 10), SMALLEST)


def spacings(values):
    exponents = torch.frexp(values)[1] - 1
    return torch.ldexp(torch.ones_like(values), exponents - 10).clamp(min=SMALLEST).double()


# --------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    "value",
    [1.0003, -1.0003, 0.1, -3.14159, 60001.0, -2047.3, 3.3e-6, -3.3e-6, 4e-8, -1e-8, 2.0**-14 * 1.0001, 2.0**-41],
    ids=str,
)
def test_stochastic_rounding_keeps_the_mean_of_a_million(value):
    count = 1_000_000
    values = torch.full((count,), value)
    rounded = Rounding(stochastic=True, seed=3)(values).double()
    step = spacing(value)
    assert len(rounded.unique()) <= 2
    assert (rounded - values.double()).abs().max() < step
    fraction = (values[0].double() / step) % 1
    sigma = step * math.sqrt(float(fraction * (1 - fraction)) / count)
    assert abs(float((rounded - values.double()).mean())) < 4 * sigma + 1e-30


def test_stochastic_rounding_of_mixed_values_has_no_bias():
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    values *= 10.0 ** torch.randint(-8, 4, values.shape, generator=torch.Generator().manual_seed(1))
    errors = (Rounding(stochastic=True, seed=0)(values).double() - values.double()) / spacings(values)
    assert errors.abs().mean() > 0.1
    # the values were drawn with the same seed: rounding with the same random numbers would be 8 sigma off
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 1000


def test_many_small_roundings_are_independent():
    """Random numbers that are used twice would spread the mean more widely than independent random numbers."""
    value, step, calls = torch.full((4096,), 1.0003), 2.0**-10, 250
    sigma = step * math.sqrt(0.3072 * 0.6928 / (calls * len(value)))  # 0.0003 is 0.3072 of a step
    scores = []
    for seed in range(6):
        rounding = Rounding(stochastic=True, seed=seed)
        errors = sum(float((rounding(value).double() - value.double()).mean()) for _ in range(calls)) / calls
        scores.append(errors / sigma)
    assert max(abs(score) for score in scores) < 4
    assert torch.tensor(scores).std() < 2


@pytest.mark.parametrize("stochastic", [False, True])
def test_float16_values_are_not_changed_by_rounding(stochastic):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = patterns.view(torch.float16)
    values = values[~values.isnan()]
    assert torch.equal(
        Rounding(stochastic=stochastic, seed=0)(values.float()).view(torch.int16), values.view(torch.int16)
    )


@pytest.mark.parametrize("stochastic", [False, True])
def test_overflow_is_clipped_but_infinities_stay(stochastic):
    values = torch.tensor([65536.0, -1e30, math.inf, -math.inf, math.nan, 65519.0])
    rounded = Rounding(stochastic=stochastic, seed=0)(values)
    assert rounded[:4].tolist() == [65504.0, -65504.0, math.inf, -math.inf]
    assert rounded[4].isnan()
    assert rounded[5] == 65504.0


@pytest.mark.parametrize("stochastic", [False, True])
def test_clipped_values_are_counted_but_infinities_and_nan_are_not(stochastic):
    rounding = Rounding(stochastic=stochastic, seed=0)
    rounding(torch.tensor([65504.0, -65504.0, math.inf, -math.inf, math.nan, 1.0]))
    assert rounding.num_clipped == 0
    rounding(torch.tensor([[65536.0, -1e30], [math.inf, math.nan]]))
    assert rounding.num_clipped == 2
    rounding.product(torch.tensor([[30000.0], [1.0]]).half(), torch.tensor([[3.0, -3.0]]).half(), 16)
    assert rounding.num_clipped == 4
    with torch.inference_mode():
        rounding(torch.tensor([1e6]))
    rounding(torch.tensor([1e6]))
    assert rounding.num_clipped == 6


def test_nearest_counts_only_what_does_not_round_to_the_largest():
    rounding = Rounding()
    rounding(torch.tensor([65519.0, -65519.0, 65520.0]))
    assert rounding.num_clipped == 1


def test_clipped_partial_sums_are_counted():
    rounding = Rounding()
    sums = Partials(half_products=True, half_convolutions=True, chunk=16, rounding=rounding)
    product = sums.product(torch.mm, torch.full((2, 32), 64.0).half(), torch.full((32, 3), 64.0).half())
    assert product.float().unique().tolist() == [65504.0]  # torch 2.0 lacks unique of float16
    assert rounding.num_clipped == 2 * 3  # both chunks of 16 are 65536; an element counts once


def test_nearest_rounds_ties_to_even():
    assert Rounding()(torch.tensor([2049.0, 2051.0])).tolist() == [2048.0, 2052.0]


def test_roundings_with_the_same_seed_are_the_same():
    values = torch.randn(1000)
    first, second, other = (Rounding(stochastic=True, seed=seed)(values) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------------- random bits


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_random_bits_are_those_of_philox(counter, key, expected):
    """The known answers that Random123 publishes for philox4x32-10."""
    first = counter[0] | counter[1] << 32
    counters = torch.tensor([first - 2**64 if first >= 2**63 else first])
    operation = Operation(seed=key[0] | key[1] << 32, number=counter[3])
    found = words_of(counters, counter[2], operation)
    assert " ".join(f"{int(word):08x}" for word in found) == expected


def test_the_number_of_an_operation_may_exceed_32_bits():
    counters = torch.arange(4)
    first, second = (words_of(counters, 0, Operation(7, number))[0] for number in (5, 5 + 2**32))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------ compiled functions

needs_compiler = pytest.mark.skipif(host_kernels() is None, reason="no C compiler")
AWKWARD = [0.0, -0.0, math.inf, -math.inf, math.nan, 65519.0, 65520.0, -65536.0, 1e30, 2.0**-14, 2.0**-25, -1e-45]


def awkward_values(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0))
    values *= 10.0 ** torch.randint(-9, 5, values.shape, generator=torch.Generator().manual_seed(1))
    values[: len(AWKWARD)] = torch.tensor(AWKWARD)[:count]
    return values


def roundings(stochastic):
    return [Rounding(stochastic=stochastic, seed=3, compiled=compiled) for compiled in (False, True)]


@needs_compiler
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("count", [1, 15, 16, 129, 100_003])
def test_compiled_rounding_gives_the_bits_of_plain_torch(count, stochastic):
    values = awkward_values(count)
    plain, compiled = roundings(stochastic)
    for _ in range(2):
        expected, found = plain(values), compiled(values)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(1.0).view(torch.int16), expected.nan_to_num(1.0).view(torch.int16))
    assert plain.num_clipped == compiled.num_clipped
    assert plain.num_clipped > 0 or count < 10
    assert torch.equal(plain.state, compiled.state)


def bits(values):
    return values.nan_to_num(1.0).view(torch.int16 if values.dtype == torch.float16 else torch.int32)


@needs_compiler
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("count", [0, 1, 15, 129, 100_003])
def test_rounding_in_float32_gives_the_values_in_float16(count, stochastic):
    values = awkward_values(count)
    one, other = (Rounding(stochastic=stochastic, seed=3) for _ in range(2))
    for given in (values, values.repeat(2).reshape(2, -1).t(), values.double(), values.half()):
        expected = one(given).float()
        found = other.in_float32(given.clone())
        assert torch.equal(bits(found), bits(expected))
    assert one.num_clipped == other.num_clipped
    assert torch.equal(one.state, other.state)


@needs_compiler
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (2 / 3, 1 / 3), (6 / 7, 1 / 7)])
@pytest.mark.parametrize("count", [1, 129, 100_003])
def test_compiled_accumulation_gives_the_bits_of_plain_torch(count, factors, stochastic):
    values = awkward_values(count).half()
    plain, compiled = roundings(stochastic)
    sums = [values.roll(1).clone() for _ in range(2)]
    for _ in range(3):
        sums = [rounding.accumulate(of, values, factors) for rounding, of in zip((plain, compiled), sums)]
        assert torch.equal(bits(sums[0]), bits(sums[1]))
    assert plain.num_clipped == compiled.num_clipped
    assert torch.equal(plain.state, compiled.state)


@needs_compiler
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_product_in_float32_has_the_values_of_one_in_float16(stochastic):
    left, right = half(3, 19, 300, scale=300.0), half(3, 300, 33, seed=1)
    one, other = (Rounding(stochastic=stochastic, seed=3) for _ in range(2))
    for a, b in ((left, right), (left.transpose(1, 2), right.transpose(1, 2)[:, :, :19].transpose(1, 2)[:, :19])):
        expected = one.product(a, b, 16)
        found = other.product(a.float(), b.float(), 16, dtype=torch.float32)
        assert torch.equal(bits(found), bits(expected.float()))
    assert one.num_clipped == other.num_clipped


@needs_compiler
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    "shapes", [((1, 1), (1, 1)), ((5, 70), (70, 4)), ((3, 19, 300), (3, 300, 33)), ((2, 8, 0), (2, 0, 3))]
)
def test_a_compiled_product_gives_the_bits_of_plain_torch(shapes, stochastic):
    left, right = half(*shapes[0]), half(*shapes[1], seed=1)
    for chunk in (1, 16):
        plain, compiled = roundings(stochastic)
        for factor in (1, 4000):
            expected, found = (rounding.product(factor * left, right, chunk) for rounding in (plain, compiled))
            assert torch.equal(found.view(torch.int16), expected.view(torch.int16))
        assert plain.num_clipped == compiled.num_clipped
        assert plain.num_clipped > 0 or left.numel() * right.numel() < 300


@needs_compiler
def test_compiled_functions_do_not_depend_on_threads_nor_on_strides():
    values, left, right = awkward_values(300_000), half(64, 300), half(300, 200, seed=1)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            rounding = Rounding(stochastic=True, seed=0)
            found.append((rounding(values), rounding.product(left, right.t().contiguous().t(), 16)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(found[0], other))


def test_a_state_of_an_earlier_version_is_refused():
    with pytest.raises(ValueError, match="a state of stochastic rounding has 16 bytes, not 32: an earlier version"):
        Rounding(stochastic=True).state = torch.zeros(32, dtype=torch.uint8)


@pytest.mark.parametrize(("mode", "is_kept"), [(0o700, True), (0o755, True), (0o775, False), (0o757, False)])
def test_a_folder_that_others_can_write_to_keeps_no_library(monkeypatch, tmp_path, mode, is_kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "vit_ipu" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert own_folder() == (folder if is_kept else None)


def test_without_a_compiler_plain_torch_computes(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    for cached in (host_kernels, kernels_for):
        cached.cache_clear()
    try:
        values = awkward_values(1000)
        found = Rounding(stochastic=True, seed=3)(values)
        assert torch.equal(found.nan_to_num(), Rounding(stochastic=True, seed=3, compiled=False)(values).nan_to_num())
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("no-such-compiler cannot compile kernels.c (")
        assert line.endswith("): an IPU's float16 is simulated many times more slowly.")
    finally:
        for cached in (host_kernels, kernels_for):
            cached.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("stochastic", [False, True])
def test_rounding_on_cuda_gives_the_bits_of_plain_torch(stochastic):
    values = awkward_values(100_003)
    plain, _ = roundings(stochastic)
    cuda = Rounding(stochastic=stochastic, seed=3)
    expected, found = plain(values), cuda(values.cuda()).cpu()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(1.0).view(torch.int16), expected.nan_to_num(1.0).view(torch.int16))
    assert cuda.num_clipped == plain.num_clipped > 0
    assert torch.equal(cuda.state, plain.state)


@pytest.mark.gpu
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("shapes", [((1, 1), (1, 1)), ((5, 70), (70, 4)), ((3, 130, 300), (3, 300, 70))])
def test_a_product_on_cuda_differs_by_the_order_of_sums_only(shapes, stochastic):
    """Tensor cores add the products of a chunk in another order: now and then, a sum rounds to the other neighbour."""
    left, right = half(*shapes[0]), half(*shapes[1], seed=1)
    for chunk in (1, 4, 16):
        plain, _ = roundings(stochastic)
        expected = plain.product(left, right, chunk).float()
        found = Rounding(stochastic=stochastic, seed=3).product(left.cuda(), right.cuda(), chunk).cpu().float()
        assert (found != expected).float().mean() < 0.01
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.1)

"""Training in the simulator's float16: accumulators, recipes that fail as on an IPU, automatic loss scaling."""

from __future__ import annotations

import pytest
import torch
from simulated import half
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.arithmetic.rounding import Rounding
from vit_ipu.simulator.updates.gradients import Gradients, Reduction

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

# ---------------------------------------------------------------------------------------- training


class Scaled(nn.Module):
    """A model whose loss is the mean of factor x weight x input: the gradient of the weight is factor x input."""

    def __init__(self, weight=1.0, factor=1.0, dtype=torch.float16):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=dtype))
        self.factor = factor

    def forward(self, x):
        return poptorch.identity_loss(self.weight * x * self.factor, reduction="mean")


def train(model, inputs, *, calls=1, accumulation=1, replicas=1, rounding=False, sum_=False, **arguments):
    options = poptorch.Options().randomSeed(7).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    if sum_:
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    options.Precision.enableStochasticRounding(rounding)
    optimizer = poptorch.optim.SGD(model.parameters(), **dict({"lr": 1.0}, **arguments))
    with poptorch.numerics("ipu"):
        executor = poptorch.trainingModel(model, options, optimizer)
        for _ in range(calls):
            executor(inputs)
    executor.copyWeightsToHost()
    return executor


def test_a_weight_too_large_for_its_update_stalls_and_moves_with_stochastic_rounding():
    one = torch.ones(1).half()
    stalled = Scaled(1.0)
    train(stalled, one, calls=200, lr=1e-4)
    assert stalled.weight.item() == 1.0
    moved = Scaled(1.0)
    train(moved, one, calls=200, lr=1e-4, rounding=True)
    assert moved.weight.item() == pytest.approx(0.98, abs=0.01)


def test_a_float32_weight_does_not_stall():
    model = Scaled(1.0, dtype=torch.float32)
    train(model, torch.ones(1), calls=200, lr=1e-4)
    assert model.weight.item() == pytest.approx(0.98, abs=1e-4)


def test_a_loss_scale_of_65536_clips_the_gradient():
    model = Scaled(0.0, factor=4.0)
    train(model, torch.ones(1).half(), loss_scaling=65536.0)
    # 4 x 65504 is clipped to 65504: about a quarter of the update remains
    assert model.weight.item() == pytest.approx(-1.0, abs=1e-2)
    healthy = Scaled(0.0, factor=4.0)
    train(healthy, torch.ones(1).half(), loss_scaling=128.0)
    assert healthy.weight.item() == -4.0


def test_an_executor_counts_what_it_clips():
    inputs = torch.ones(4).half()
    clipping = train(Scaled(0.0, factor=4.0), inputs, calls=3, loss_scaling=32768.0, accumulation=2, replicas=2)
    assert clipping.num_clipped() == 3 * 4  # the gradient of each micro-batch
    assert train(Scaled(0.0, factor=4.0), inputs, calls=3, loss_scaling=128.0).num_clipped() == 0
    exact = poptorch.trainingModel(Scaled(0.0, factor=4.0))
    exact(torch.full((1,), 60000.0).half())
    assert exact.num_clipped() == 0


def test_a_small_gradient_underflows_without_a_loss_scale():
    tiny = torch.tensor([2.0**-14]).half()
    lost, kept = Scaled(0.0, factor=2.0**-12), Scaled(0.0, factor=2.0**-12)
    train(lost, tiny, lr=2.0**20)
    assert lost.weight.item() == 0.0
    train(kept, tiny, lr=2.0**20, loss_scaling=2.0**12)
    assert kept.weight.item() == pytest.approx(-(2.0**-6))


def test_gradients_accumulate_in_float16_with_the_running_mean():
    inputs = torch.tensor([40000.0, 50000.0, 60000.0, 30000.0]).half()
    summed, running = Scaled(0.0), Scaled(0.0)
    train(summed, inputs, accumulation=4, accum_type=torch.float32, lr=1e-4)
    assert summed.weight.item() == pytest.approx(-4.5, abs=0.01)
    executor = train(running, inputs, accumulation=4, accum_type=torch.float16, lr=1e-4)
    strategy = executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Running
    assert running.weight.item() == pytest.approx(-4.5, abs=0.01)


def accumulated(values, reduction, dtype):
    weight = torch.zeros(1, dtype=torch.float16, requires_grad=True)
    gradients = Gradients({"weight": weight}, reduction, dtype, Rounding())
    for number, value in enumerate(values):
        weight.grad = torch.tensor([value]).half()
        gradients.take(number)
        assert weight.grad is None
    return gradients.reduced()["weight"]


def test_a_float16_sum_is_clipped_but_its_running_mean_is_not():
    values = [40000.0, 50000.0]
    post, running = Reduction(2, 1, True, False), Reduction(2, 1, True, True)
    assert accumulated(values, post, torch.float16).item() == 65504.0
    assert accumulated(values, post, torch.float32).item() == 89984.0  # 50000 is 49984 in float16
    assert accumulated(values, running, torch.float16).item() == 44992.0
    assert accumulated([2048.0, 1.0], post, torch.float16).item() == 2048.0


def test_replicas_accumulate_separately_and_are_then_reduced():
    # replica 0 sees 2048 and 1, replica 1 sees 1 and 1: each rounds its own sum
    reduction = Reduction(2, 2, False, False)
    assert accumulated([2048.0, 1.0, 1.0, 1.0], reduction, torch.float16).item() == 2050.0


def adam_state(**types):
    model = Scaled(0.5)
    with poptorch.numerics("ipu"):
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, **types)
        poptorch.trainingModel(model, poptorch.Options(), optimizer)(torch.ones(1).half())
        return optimizer.state_dict()["ipu_state"]


def test_moments_have_the_formats_of_the_options():
    state = adam_state(first_order_momentum_accum_type=torch.float16)
    assert state["Accl1___weight"].dtype == torch.float16
    assert state["Accl2___weight"].dtype == torch.float32
    assert state["Accl1___weight"].item() == float(torch.tensor(0.1).half())
    state = adam_state(second_order_momentum_accum_type=torch.float16)
    assert state["Accl2___weight"].dtype == torch.float16


class Dot(nn.Module):
    """A model whose loss is the sum of weight x input: the gradient of the weight is the input."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return poptorch.identity_loss((self.weight * x).sum(), reduction="none")


def adamw_in_float16(weight, gradient, decay, eps, second_type):
    """Returns the weights after AdamW's first update, op by op as in popx/op/adamupdaterx.cpp."""
    first, second = 0.1 * gradient.float(), (0.001 * gradient.float() ** 2).to(second_type)
    correction = torch.tensor(1 - 0.999, dtype=second_type)
    root = (second / correction).float().sqrt().to(second_type)  # torch 2.0.1 lacks the root of float16
    root = root + torch.tensor(eps, dtype=second_type)
    step = (first / 0.1).to(second_type) / root
    step = step.half() + weight * torch.tensor(decay).half()
    return (weight.float() - 0.1 * step.float()).half()


@pytest.mark.parametrize("second_type", [torch.float32, torch.float16])
@pytest.mark.parametrize("is_variable", [True, False], ids=["variable", "constant"])
def test_adamw_adds_the_decayed_weight_in_float16(is_variable, second_type):
    weight, gradient = half(4000, scale=4.0), half(4000, seed=1)
    gradient = torch.where(gradient.abs() < 0.5, torch.ones_like(gradient), gradient)
    model = Dot(weight.clone())
    decay, eps = (0.3, 1e-3) if is_variable else (0.0, 1e-3)
    arguments = {"weight_decay": decay} if is_variable else {}
    optimizer = poptorch.optim.AdamW(
        model.parameters(), lr=0.1, eps=eps, second_order_momentum_accum_type=second_type, **arguments
    )
    decay = optimizer.param_groups[0]["weight_decay"]
    with poptorch.numerics("ipu"):
        poptorch.trainingModel(model, poptorch.Options(), optimizer)(gradient)
    expected = adamw_in_float16(weight, gradient, decay, eps, second_type)
    assert torch.equal(model.weight.detach(), expected)


def test_training_with_stochastic_rounding_is_reproducible_and_resumes():
    def run(calls, resume=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).half()

        class WithLoss(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = model

            def forward(self, x):
                return poptorch.identity_loss(self.layers(x), reduction="mean")

        wrapped = WithLoss()
        options = poptorch.Options().randomSeed(1)
        options.Precision.enableStochasticRounding(True)
        if resume is not None:
            wrapped.load_state_dict(resume[0])
        with poptorch.numerics("ipu"):
            executor = poptorch.trainingModel(wrapped, options, poptorch.optim.SGD(wrapped.parameters(), lr=0.3))
            executor.compile(half(2, 4))
            if resume is not None:
                executor.rng_state = resume[1]
            for _ in range(calls):
                executor(half(2, 4))
        return {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}, executor.rng_state

    whole, again, part = run(4), run(4), run(2)
    resumed = run(2, resume=part)
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, again[0][name])
        assert torch.equal(tensor, resumed[0][name])
    assert not torch.equal(whole[0]["layers.0.weight"], part[0]["layers.0.weight"])


# --------------------------------------------------------------------------- automatic loss scaling


def scaled_automatically(model, inputs, calls):
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=1.0)
    executor = poptorch.trainingModel(model, options, optimizer)
    factors = []
    for _ in range(calls):
        executor(inputs)
        factors.append(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item())
    return factors


@pytest.mark.parametrize("mode", ["exact", "ipu"])
def test_the_loss_scale_doubles_until_gradients_are_large_and_then_halves(mode):
    with poptorch.numerics(mode):
        # 1000 x 16 exceeds the limit of 8188
        assert scaled_automatically(Scaled(1.0, factor=1000.0), torch.ones(1).half(), 7) == [2, 4, 8, 16, 8, 16, 8]


def test_automatic_loss_scaling_does_not_change_the_update():
    plain, scaled = (Scaled(0.0, factor=3.0) for _ in range(2))
    x = torch.ones(1).half()
    train(plain, x, calls=5, lr=0.25)
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    with poptorch.numerics("ipu"):
        executor = poptorch.trainingModel(scaled, options, poptorch.optim.SGD(scaled.parameters(), lr=0.25))
        for _ in range(5):
            executor(x)
        executor.copyWeightsToHost()
    assert scaled.weight.item() == plain.weight.item() == -3.75


def test_automatic_loss_scaling_needs_float16_gradients():
    with pytest.raises(poptorch.Error, match="No tracked gradient tensors of type fp16 were found"):
        scaled_automatically(Scaled(1.0, dtype=torch.float32), torch.ones(1), 1)


# -------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
def test_stochastic_rounding_moves_a_weight_the_same_way_twice_on_cuda():
    poptorch.machine.configure(16, device="cuda")
    weights = []
    for _ in range(2):
        model = Scaled(1.0)
        train(model, torch.ones(1).half(), calls=200, lr=1e-4, rounding=True)
        weights.append(model.weight.item())
    assert weights[0] == weights[1] == pytest.approx(0.98, abs=0.01)


def test_exact_numerics_compute_float16_in_float32():
    class Model(nn.Module):
        def forward(self, x):
            return (x.half() + 2.0**-12) - x.half()

    x = torch.ones(2)
    for numerics, expected in (("exact", 2.0**-12), ("ipu", 0.0)):
        with poptorch.numerics(numerics):
            out = poptorch.inferenceModel(Model())(x)
        assert (out.dtype, out.tolist()) == (torch.float16, [expected] * 2)


class Convolution(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3).to(dtype)
        self.head = nn.Linear(48, 2).to(dtype)

    def forward(self, x):
        return poptorch.identity_loss(self.head(self.layer(x).flatten(1)).float().square(), reduction="mean")


def updated(dtype, numerics, *, running=False):
    """Returns the weights, in float32, after an update of 4 micro-batches on 2 replicas."""
    torch.manual_seed(0)
    model = Convolution(torch.float32).to(dtype)
    opts = poptorch.Options().replicationFactor(2)
    opts.Training.gradientAccumulation(4)
    if running:
        strategy = poptorch.MeanReductionStrategy.Running
        opts.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    with poptorch.numerics(numerics):
        executor = poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=0.1))
        executor(torch.randn(8, 2, 6, 6).to(dtype))
    return [weight.detach().float().clone() for weight in model.parameters()]


@pytest.mark.parametrize("running", [False, True], ids=["mean after accumulation", "running mean"])
def test_float32_training_is_the_same_in_ipu_and_exact_numerics(running):
    for ours, exact in zip(updated(torch.float32, "ipu", running=running), updated(torch.float32, "exact")):
        torch.testing.assert_close(ours, exact)


def test_a_float16_convolution_with_a_bias_differs_from_the_exact_one_by_rounding_only():
    pairs = list(zip(updated(torch.float16, "ipu"), updated(torch.float16, "exact")))
    assert not all(torch.equal(ours, exact) for ours, exact in pairs)
    for ours, exact in pairs:
        torch.testing.assert_close(ours, exact, rtol=2e-3, atol=2e-4)

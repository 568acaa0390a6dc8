"""The simulator's optimizers, compared with torch's and with their formulas."""

from __future__ import annotations

import logging

import pytest
import torch
from simulated import TwoStages, data, executor_of, train_plainly

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

optim = poptorch.optim


def trained(make, *, updates=4, accumulation=4, replicas=2, dtype=torch.float64, change=None):
    torch.manual_seed(0)
    model = TwoStages().to(dtype)
    executor = executor_of(model, make(model.parameters()), accumulation=accumulation, replicas=replicas, change=change)
    for seed in range(updates):
        executor(*data(2 * accumulation * replicas, seed, dtype))
    executor.copyWeightsToHost()
    return [parameter.detach().clone() for parameter in model.parameters()]


def trained_plainly(make, *, updates=4, micro_batches=8):
    torch.manual_seed(0)
    model = TwoStages().to(torch.float64)
    batches = [data(2 * micro_batches, seed, torch.float64) for seed in range(updates)]
    train_plainly(model, batches, make(model.parameters()), micro_batches=micro_batches)
    return [parameter.detach() for parameter in model.parameters()]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


RMSPROP = [
    {"lr": 0.01},
    {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.01, "centered": True, "alpha": 0.9, "eps": 1e-3},
    {"lr": 0.01, "centered": True, "momentum": 0.5},
]


@pytest.mark.parametrize("arguments", RMSPROP, ids=["plain", "momentum", "centered", "both"])
@pytest.mark.parametrize("loss_scaling", [1.0, 64.0])
def test_rmsprop_equals_torchs(arguments, loss_scaling):
    ours = trained(lambda p: optim.RMSprop(p, loss_scaling=loss_scaling, **arguments))
    assert_equal(ours, trained_plainly(lambda p: torch.optim.RMSprop(p, **arguments)))


def test_the_tensorflow_variant_of_rmsprop_equals_its_formula():
    ours = trained(lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, eps=0.01, use_tf_variant=True), updates=2)
    torch.manual_seed(0)
    model = TwoStages().double()
    parameters = list(model.parameters())
    squares, velocities = [torch.ones_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for seed in range(2):
        model.zero_grad()
        x, labels = data(16, seed, torch.float64)
        torch.stack([model(a, b)[1] for a, b in zip(x.chunk(8), labels.chunk(8))]).mean().backward()
        with torch.no_grad():
            for p, square, velocity in zip(parameters, squares, velocities):
                square.mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                velocity.mul_(0.5).add_(0.1 * p.grad / (square + 0.01).sqrt())
                p.sub_(velocity)
    assert_equal(ours, [p.detach() for p in parameters])


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("limit", [65500.0, 0.3])
def test_lamb_on_the_ipu_equals_lamb_on_the_host(bias_correction, limit):
    def make(parameters):
        return optim.LAMB(parameters, lr=0.1, bias_correction=bias_correction, max_weight_norm=limit)

    ours = trained(make)
    assert_equal(ours, trained_plainly(make))
    free = trained(lambda p: optim.LAMB(p, lr=0.1, bias_correction=bias_correction))
    assert (limit == 0.3) == (not torch.allclose(ours[0], free[0]))


def test_the_bias_correction_of_a_negative_beta():
    def make(parameters):
        return optim.LAMB(parameters, lr=0.1, betas=(-0.5, 0.9))

    assert_equal(trained(make), trained_plainly(make))


def test_max_weight_norm_is_per_group():
    def make(parameters):
        first, *rest = list(parameters)
        return optim.LAMB([{"params": [first], "max_weight_norm": 0.1}, {"params": rest}], lr=0.1)

    assert_equal(trained(make), trained_plainly(make))


@pytest.mark.parametrize("accumulation", [3, 4])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "scaling",
    [{}, {"loss_scaling": 8.0}, {"loss_scaling": 8.0, "velocity_scaling": 32.0}],
    ids=["none", "loss", "both"],
)
def test_the_combined_variant_of_sgd_equals_torchs(accumulation, replicas, scaling):
    arguments = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    ours = trained(
        lambda p: optim.SGD(p, use_combined_accum=True, **scaling, **arguments),
        accumulation=accumulation,
        replicas=replicas,
    )
    micro_batches = accumulation * replicas
    assert_equal(ours, trained_plainly(lambda p: torch.optim.SGD(p, **arguments), micro_batches=micro_batches))


def test_dampening_applies_from_the_first_update():
    ours = trained(lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), updates=1)
    assert_equal(ours, trained_plainly(lambda p: torch.optim.SGD(p, lr=0.05), updates=1))


def test_maximize_has_no_effect_and_warns(caplog):
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        logging.getLogger("poptorch").propagate = True
        ours = trained(lambda p: optim.SGD(p, lr=0.1, maximize=True))
    assert "maximize has no effect" in caplog.text
    assert_equal(ours, trained_plainly(lambda p: torch.optim.SGD(p, lr=0.1)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_running_mean_equals_the_mean_after_accumulation(momentum):
    def running(made):
        made.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)

    def make(parameters):
        return optim.SGD(parameters, lr=0.1, momentum=momentum, loss_scaling=4.0)

    assert_equal(trained(make, change=running), trained(make))


def test_clipping_acts_on_the_scaled_velocity_but_keeps_its_stored_value():
    torch.manual_seed(0)
    model = TwoStages().double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optim.SGD(model.parameters(), lr=1.0, momentum=0.5, loss_scaling=16.0, max_grad_norm=0.01)
    executor = executor_of(model, optimizer)
    executor(*data(8, dtype=torch.float64))
    executor.copyWeightsToHost()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before)]).norm()
    assert moved == pytest.approx(0.01 / 16)  # this variant scales its velocity by the loss scale
    state = optimizer.state_dict()["ipu_state"]
    velocity = torch.cat([tensor.flatten() for name, tensor in state.items() if name.startswith("Accl1___")])
    assert velocity.norm() > 1

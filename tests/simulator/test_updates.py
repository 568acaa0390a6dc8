"""The simulator's weight updates, compared with torch's optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from simulated import TwoStages, data, options, train_plainly
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


OPTIMIZERS = [
    (poptorch.optim.SGD, torch.optim.SGD, {"lr": 0.1}),
    (poptorch.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    (poptorch.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (poptorch.optim.Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (poptorch.optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
]


@pytest.mark.parametrize("loss", ["function", "identity"])
@pytest.mark.parametrize(("ours", "torchs", "arguments"), OPTIMIZERS)
@pytest.mark.parametrize("loss_scaling", [1.0, 128.0])
def test_updates_equal_torchs_optimizers(loss, ours, torchs, arguments, loss_scaling):
    torch.manual_seed(0)
    model = TwoStages(loss=loss).double()
    reference = copy.deepcopy(model)
    batches = [data(16, seed, torch.float64) for seed in range(5)]
    optimizer = ours(model.parameters(), loss_scaling=loss_scaling, **arguments)
    executor = poptorch.trainingModel(model, options(1, 4, 2), optimizer)
    for x, labels in batches:
        executor(x, labels)
    train_plainly(reference, batches, torchs(reference.parameters(), **arguments), micro_batches=8)
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-10, atol=1e-12)


def test_one_call_makes_one_update_per_device_iteration():
    torch.manual_seed(0)
    model = TwoStages()
    reference = copy.deepcopy(model)
    x, labels = data(48)
    executor = poptorch.trainingModel(model, options(3, 4, 2), poptorch.optim.SGD(model.parameters(), lr=0.1))
    executor(x, labels)
    batches = list(zip(x.chunk(3), labels.chunk(3)))
    train_plainly(reference, batches, torch.optim.SGD(reference.parameters(), lr=0.1), micro_batches=8)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_updates_can_be_reduced_by_sum():
    torch.manual_seed(0)
    model = TwoStages()
    reference = copy.deepcopy(model)
    summing = options(1, 4, 2)
    summing.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    executor = poptorch.trainingModel(model, summing, poptorch.optim.SGD(model.parameters(), lr=0.01))
    executor(*data(16))
    sgd = torch.optim.SGD(reference.parameters(), lr=0.01)
    train_plainly(reference, [data(16)], sgd, micro_batches=8, reduction="sum")
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_clipping_by_the_global_norm_acts_on_adamws_gradient():
    torch.manual_seed(0)
    model = TwoStages().double()
    reference = copy.deepcopy(model)
    arguments = {"lr": 0.01, "eps": 1.0}  # a large eps, so that the size of the gradient matters
    optimizer = poptorch.optim.AdamW(model.parameters(), max_grad_norm=0.1, **arguments)
    executor = poptorch.trainingModel(model, options(1, 4, 1), optimizer)
    executor(*data(8, dtype=torch.float64))
    x, labels = data(8, dtype=torch.float64)
    torch.stack([reference(a, b)[1] for a, b in zip(x.chunk(4), labels.chunk(4))]).mean().backward()
    norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    assert norm > 0.1
    torch.optim.AdamW(reference.parameters(), **arguments).step()
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-6, atol=1e-8)


def test_a_new_learning_rate_acts_only_after_set_optimizer():
    model = TwoStages()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0)
    executor = poptorch.trainingModel(model, options(), optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.param_groups[0]["lr"] = 0.5
    executor(*data(8))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    executor.setOptimizer(optimizer)
    executor(*data(8))
    assert not torch.equal(model.state_dict()["first.weight"], before["first.weight"])


def test_a_constant_attribute_cannot_change_after_compilation():
    model = TwoStages()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, options(), optimizer)
    executor(*data(8))
    optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(poptorch.Error, match="weight_decay is constant"):
        executor.setOptimizer(optimizer)
    with pytest.raises(poptorch.Error, match="adamw with 1 groups but the executable was compiled for sgd"):
        executor.setOptimizer(poptorch.optim.AdamW(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (lambda p: poptorch.optim.Adam(p), lambda o: o.param_groups[0].update(lr=1.0), "lr is constant"),
        (
            lambda p: poptorch.optim.SGD(p, lr=0.1),
            lambda o: setattr(o, "loss_scaling", 8.0),
            "loss_scaling is constant",
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda o: o.param_groups[0].update(momentum=0.9),
            "momentum is constant",
        ),
        (lambda p: torch.optim.AdamW(p), lambda o: o.param_groups[0].update(betas=(0.1, 0.2)), "betas is constant"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5), lambda o: o.param_groups[0].update(momentum=0.9), None),
        (lambda p: poptorch.optim.SGD(p, lr=0.1, loss_scaling=2.0), lambda o: setattr(o, "loss_scaling", 8.0), None),
        (lambda p: torch.optim.AdamW(p), lambda o: o.param_groups[0].update(lr=1.0), None),
    ],
)
def test_constant_attributes_depend_on_how_the_optimizer_was_made(make, change, message):
    model = TwoStages()
    optimizer = make(model.parameters())
    executor = poptorch.trainingModel(model, options(), optimizer)
    executor(*data(8))
    change(optimizer)
    if message is None:
        executor.setOptimizer(optimizer)
    else:
        with pytest.raises(poptorch.Error, match=message):
            executor.setOptimizer(optimizer)


def test_an_optimizer_of_another_model_is_an_error():
    model = TwoStages()
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(TwoStages().parameters(), lr=0.1))
    with pytest.raises(KeyError):
        executor(*data(8))


def test_half_accumulation_sets_the_running_mean():
    model = TwoStages()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, accum_type=torch.float16)
    executor = poptorch.trainingModel(model, options(), optimizer)
    strategy = executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Running


def test_unsupported_optimizers_are_refused():
    model = TwoStages()
    with pytest.raises(AssertionError, match="Unsupported optimizer type"):
        poptorch.trainingModel(model, options(), torch.optim.Adagrad(model.parameters()))
    with pytest.raises(ValueError, match="non-amsgrad"):
        poptorch.trainingModel(model, options(), torch.optim.Adam(model.parameters(), amsgrad=True))
    with pytest.raises(AssertionError, match="either torch.float32 or torch.float16"):
        poptorch.optim.AdamW(model.parameters(), accum_type=torch.float64)

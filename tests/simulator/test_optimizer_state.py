"""Attributes and state of the simulator's optimizers: what is refused, warned about, saved and loaded."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from simulated import TwoStages, data, executor_of

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

optim = poptorch.optim


# -------------------------------------------------------------------------------------- attributes


def with_group(**changes):
    def make(parameters):
        made = torch.optim.SGD(parameters, lr=0.1)
        made.param_groups[0].update(changes)
        return made

    return make


def centered_in_one_group(parameters):
    first, *rest = list(parameters)
    return torch.optim.RMSprop([{"params": [first], "centered": True}, {"params": rest}])


def with_attribute(**attributes):
    def make(parameters):
        made = optim.SGD(parameters, lr=0.1)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    return make


def betas_of_three(parameters):
    made = torch.optim.Adam(parameters)
    made.param_groups[0]["betas"] = (0.9, 0.99, 0.999)
    return made


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (with_group(lr=None), AssertionError, "Mandatory attribute lr not found in optimizer group"),
        (with_group(momentum="0.9"), AssertionError, "Expected a number for momentum but got 0.9 instead"),
        (betas_of_three, AssertionError, "Expected a pair for betas but got"),
        (centered_in_one_group, AssertionError, "All parameter groups must have the same value for the 'centered'"),
        (with_attribute(accum_type=torch.int8), ValueError, "accum_type must be set to either torch.float16 or"),
        (with_attribute(loss_scaling="8"), AssertionError, "Expected a number for loss_scaling"),
        (with_attribute(loss_scaling=0.0), poptorch.Error, "Loss scaling cannot be 0"),
    ],
    ids=["missing", "number", "betas", "centered", "type", "loss_scaling", "zero"],
)
def test_invalid_attributes_are_refused(make, kind, message):
    model = TwoStages()
    with pytest.raises(kind, match=message):
        executor_of(model, make(model.parameters()))


def test_unknown_attributes_cannot_be_marked():
    with pytest.raises(AssertionError, match="Unknown attribute speed, allowed values"):
        optim.SGD(TwoStages().parameters(), lr=0.1).variable_attrs.markAsVariable("speed")


def test_a_clip_norm_cannot_change_after_compilation():
    model = TwoStages()
    optimizer = optim.AdamW(model.parameters(), lr=0.1, max_grad_norm=1.0)
    executor = executor_of(model, optimizer)
    executor(*data(8))
    optimizer.max_grad_norm = 2.0
    with pytest.raises(poptorch.Error, match="Clip norm settings at index 0 do not match"):
        executor.setOptimizer(optimizer)


@pytest.fixture
def log(caplog):
    logger = logging.getLogger("poptorch")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        yield caplog
    logger.propagate = before


def test_missing_state_starts_from_its_initial_value(log):
    model = TwoStages()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    executor = executor_of(model, optimizer)
    executor(*data(8))
    state = copy.deepcopy(optimizer.state_dict())
    del state["ipu_state"]["Step___first.bias"]
    optimizer.load_state_dict(state)
    executor(*data(8))
    assert "The optimizer state has no Step___first.bias: it starts from its initial value" in log.text


@pytest.mark.parametrize(
    ("state", "message"),
    [({}, "because it is empty"), ({"state": {}, "param_groups": []}, "Only IPU optimizer states can be loaded")],
    ids=["empty", "torch's"],
)
def test_a_state_that_is_not_poptorchs_is_refused(state, message):
    with pytest.raises(RuntimeError, match=message):
        optim.AdamW(TwoStages().parameters(), lr=0.1).set_state_dict(state)


@pytest.mark.parametrize("relaxed", [False, True])
def test_unknown_attributes_are_reported_once_unless_checks_are_relaxed(log, relaxed):
    model = TwoStages()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.known = 1
    executor = executor_of(model, optimizer, change=lambda o: o.relaxOptimizerAttributesChecks(relaxed))
    assert "unexpected" not in log.text
    optimizer.schedule = 2
    optimizer.param_groups[0]["initial_lr"] = 0.1
    for _ in range(2):
        executor.setOptimizer(optimizer)
    assert log.text.count("Ignoring unexpected optimizer attribute in SGD optimizer: ['schedule']") == (not relaxed)
    assert log.text.count("Ignoring unexpected group 0 attribute in SGD optimizer: ['initial_lr']") == (not relaxed)


@pytest.mark.parametrize("base", [torch.optim.AdamW, optim.AdamW])
def test_a_subclass_of_an_optimizer_is_warned_about(log, base):
    model = TwoStages()
    executor_of(model, base(model.parameters(), lr=0.1))
    assert "subclassed" not in log.text

    class Mine(base):
        pass

    model = TwoStages()
    executor_of(model, Mine(model.parameters(), lr=0.1))
    assert "Optimizer `Mine` subclassed from classes" in log.text


def test_velocity_scaling_of_the_separate_variant_warns(log):
    optim.SGD(TwoStages().parameters(), lr=0.1, velocity_scaling=2.0)
    assert "velocity_scaling value ignored when using the separate variant" in log.text


def test_the_combined_variant_keeps_the_mean_after_accumulation():
    model = TwoStages()
    half = optim.SGD(model.parameters(), lr=0.1, use_combined_accum=True, accum_type=torch.float16)
    strategy = executor_of(model, half).options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Post


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize(
    ("make", "prefixes"),
    [
        (lambda p: optim.SGD(p, lr=0.1), set()),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.0), {"Accl1"}),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, use_combined_accum=True), {"Accl"}),
        (lambda p: optim.AdamW(p, lr=0.1), {"Accl1", "Accl2", "Step"}),
        (lambda p: optim.LAMB(p, lr=0.1, bias_correction=False), {"Accl1", "Accl2"}),
        (lambda p: optim.RMSprop(p, lr=0.1), {"Accl1"}),
        (lambda p: optim.RMSprop(p, lr=0.1, centered=True, momentum=0.9), {"Accl1", "Accl2", "Accl3"}),
    ],
    ids=["sgd", "variable momentum", "combined", "adamw", "lamb", "rmsprop", "centered"],
)
def test_state_tensors_have_poparts_names(make, prefixes):
    model = TwoStages()
    optimizer = make(model.parameters())
    executor = executor_of(model, optimizer)
    executor.compile(*data(8))
    state = optimizer.state_dict()["ipu_state"]
    assert set(state) == {f"{p}___{name}" for p in prefixes for name, _ in TwoStages().named_parameters()}


def test_only_variable_scalars_are_in_the_state_under_poparts_names():
    model = TwoStages()
    optimizer = optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1, loss_scaling=4.0)
    executor_of(model, optimizer).compile(*data(8))
    scalars = optimizer.state_dict()["ipu_param"]
    assert scalars["scaledLearningRate0___specific___first.bias"] == 0.5 / 4 / 4  # loss scale, accumulation
    assert scalars["weightDecayScaleFactor0___specific___first.bias"] == pytest.approx(1 - 0.5 * 0.1)
    assert scalars["lossScaling_FLOAT"] == 4
    model = TwoStages()
    optimizer = optim.AdamW(model.parameters(), lr=0.5)
    executor_of(model, optimizer).compile(*data(8))
    assert {name.split("___")[0] for name in optimizer.state_dict()["ipu_param"]} == {"learningRate"}


def test_loaded_scalars_are_returned_but_not_used_in_updates():
    model = TwoStages()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    executor = executor_of(model, optimizer)
    executor.compile(*data(8))
    name = "learningRate___specific___first.weight"
    state = copy.deepcopy(optimizer.state_dict())
    state["ipu_param"][name] = torch.tensor(0.0)
    optimizer.load_state_dict(state)
    before = model.first.weight.detach().clone()
    executor(*data(8))
    assert optimizer.state_dict()["ipu_param"][name] == 0
    assert not torch.equal(model.first.weight, before)
    optimizer.param_groups[0]["lr"] = 0.2
    executor.setOptimizer(optimizer)
    executor(*data(8))
    assert optimizer.state_dict()["ipu_param"][name] == torch.tensor(0.2)


def test_training_that_resumes_from_a_state_dict_is_unchanged():
    def run(interrupted):
        torch.manual_seed(0)
        model = TwoStages().double()
        optimizer = optim.AdamW(model.parameters(), lr=0.1)
        executor = executor_of(model, optimizer)
        executor(*data(8, dtype=torch.float64))
        if interrupted:
            state = copy.deepcopy(optimizer.state_dict())
            executor.destroy()
            optimizer = optim.AdamW(model.parameters(), lr=0.1)
            optimizer.load_state_dict(state)
            executor = executor_of(model, optimizer)
        executor(*data(8, dtype=torch.float64))
        return model.first.weight.detach().clone()

    assert torch.equal(run(False), run(True))


def test_a_new_optimizer_takes_over_the_state_of_the_old_one():
    model = TwoStages()
    first = optim.AdamW(model.parameters(), lr=0.1)
    executor = executor_of(model, first)
    executor(*data(8))
    second = optim.AdamW(model.parameters(), lr=0.1)
    executor.setOptimizer(second)
    executor(*data(8, 1))
    assert first.state_dict()["ipu_state"]["Step___first.bias"] == 1
    assert second.state_dict()["ipu_state"]["Step___first.bias"] == 2


def test_a_float16_accumulator_needs_another_executable():
    model = TwoStages()
    executor = executor_of(model, optim.AdamW(model.parameters(), lr=0.1))
    executor(*data(8))
    with pytest.raises(ValueError, match="MeanReductionStrategy.Running but the executable is already compiled"):
        executor.setOptimizer(optim.AdamW(model.parameters(), lr=0.1, accum_type=torch.float16))


def test_an_attribute_that_is_marked_as_constant_cannot_be_changed():
    model = TwoStages()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    optimizer.variable_attrs.markAsConstant("lr")
    executor = executor_of(model, optimizer)
    executor(*data(8))
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(poptorch.Error, match="Attribute lr is constant .* cannot change from 0.1 to 0.2"):
        executor.setOptimizer(optimizer)

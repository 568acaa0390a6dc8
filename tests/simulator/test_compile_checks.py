"""The simulator refuses what PopTorch refuses, with its errors."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator import popart_enums as popart

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def test_too_few_micro_batches_are_refused():
    with pytest.raises(poptorch.Error, match=r"number of pipeline stages \(3\).* additional 1 stages when training"):
        poptorch.trainingModel(TwoStages(), options(1, 2, 1))(*data(4))
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be .* stages \(2\)"):
        poptorch.inferenceModel(TwoStages(), poptorch.Options())(*data(2))


def test_pipeline_recomputation_needs_a_pipeline():
    sharded = options(1, 3, 1).setExecutionStrategy(poptorch.ShardedExecution())
    sharded._Popart.set("autoRecomputation", 3)
    with pytest.raises(poptorch.Error, match="Invalid RecomputationType::Pipeline"):
        poptorch.trainingModel(TwoStages(), sharded)(*data(6))


def test_all_ipus_up_to_the_highest_are_held():
    class Skipping(TwoStages):
        def __init__(self):
            super().__init__()
            poptorch.removeBlocks(self)
            poptorch.BeginBlock(self.second, "second", ipu_id=3)

    executor = poptorch.trainingModel(Skipping(), options(1, 3, 1))
    executor(*data(6))
    assert machine.current.ipus_held == 4


def test_sharded_execution_needs_no_minimum_of_micro_batches():
    sharded = options(1, 1, 1)
    sharded.setExecutionStrategy(poptorch.ShardedExecution())
    out, _ = poptorch.trainingModel(TwoStages(), sharded)(*data(2))
    assert out.shape == (2, 3)


class ThreeStages(TwoStages):
    def __init__(self):
        super().__init__()
        poptorch.BeginBlock(self.dropout, "middle", ipu_id=2)


def test_ipus_must_be_a_power_of_two():
    x, labels = data(7)
    with pytest.raises(poptorch.Error, match="use of 3 IPUs.*minimum of 4.*autoRoundNumIPUs"):
        poptorch.trainingModel(ThreeStages(), options(1, 7, 1))(x, labels)
    poptorch.trainingModel(ThreeStages(), options(1, 7, 1).useOfflineIpuTarget()).compile(x, labels)  # needs no IPUs
    rounded = options(1, 7, 1).autoRoundNumIPUs(True)
    executor = poptorch.trainingModel(ThreeStages(), rounded)
    executor(x, labels)
    assert machine.current.ipus_held == 4


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda out, labels: out, "find a loss"),
        (lambda out, labels: (F.cross_entropy(out, labels), F.mse_loss(out, out * 2)), "Multiple independent losses"),
    ],
)
def test_training_needs_exactly_one_final_loss(forward, message):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, labels):
            return forward(self.layer(x), labels)

    with pytest.raises(poptorch.Error, match=message):
        poptorch.trainingModel(Model())(*data(2))


def test_losses_that_are_combined_into_one_are_accepted():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, labels):
            out = self.layer(x)
            parts = F.cross_entropy(out, labels) + 0.1 * poptorch.identity_loss(out.square(), reduction="mean")
            return poptorch.identity_loss(parts, reduction="none")

    torch.manual_seed(0)
    model = Model()
    reference = copy.deepcopy(model)
    x, labels = data(2)
    executor = poptorch.trainingModel(model, None, torch.optim.SGD(model.parameters(), lr=0.1))
    executor(x, labels)
    out = reference.layer(x)
    (F.cross_entropy(out, labels) + 0.1 * out.square().mean()).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    torch.testing.assert_close(dict(model.state_dict()), dict(reference.state_dict()))


def test_operations_after_the_end_of_a_block_are_refused():
    class Model(nn.Module):
        def forward(self, x):
            with poptorch.Block("only", ipu_id=0):
                y = x * 2
            return y + 1

    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(Model())(torch.ones(2))


def test_options_freeze_when_used():
    used = options()
    poptorch.trainingModel(TwoStages(), used)
    for change in (lambda: used.deviceIterations(2), lambda: used.Training.gradientAccumulation(2)):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change()
    assert used.clone().deviceIterations(5).device_iterations == 5


def test_wrapping_twice_and_annotating_twice_are_refused():
    model = TwoStages()
    executor = poptorch.trainingModel(model, options())
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(model, options())
    executor(*data(8))
    executor.destroy()
    poptorch.trainingModel(model, options())
    with pytest.raises(poptorch.Error, match="already been assigned to a block"):
        poptorch.BeginBlock(model.first, "again", ipu_id=0)
    poptorch.removeBlocks(model)
    poptorch.BeginBlock(model.first, "again", ipu_id=0)


def test_options_must_be_poptorchs():
    with pytest.raises(poptorch.Error, match="'options' is of type <class 'dict'> .Expected poptorch.Options."):
        poptorch.inferenceModel(TwoStages(), {"deviceIterations": 2})


def test_inference_takes_no_optimizer():
    executor = poptorch.inferenceModel(TwoStages(), poptorch.Options().deviceIterations(2))
    with pytest.raises(AssertionError, match="Optimizer should be None for inference"):
        executor.setOptimizer(torch.optim.SGD(TwoStages().parameters(), lr=0.1))


def test_compiling_twice_warns(caplog):
    executor = poptorch.inferenceModel(nn.Identity())
    with caplog.at_level(logging.WARNING, logger="poptorch"):
        executor.compile(torch.ones(2))
        assert not caplog.text
        executor.compile(torch.ones(2))
    assert "Call to compile() ignored: the executable is already compiled" in caplog.text


def test_inference_takes_no_accumulation():
    with pytest.raises(poptorch.Error, match=r"gradientAccumulation to 1.*deviceIterations"):
        poptorch.inferenceModel(TwoStages(), options())


def test_a_reassigned_buffer_is_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            return x + self.count

    with pytest.raises(poptorch.Error, match=r"Buffer count is reassigned.*self.count.copy_"):
        poptorch.inferenceModel(Model())(torch.ones(2))


@pytest.mark.parametrize(("name", "kind"), [("count", "Buffer"), ("weight", "Parameter")])
def test_a_forward_that_removes_a_tensor_is_refused(name, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            out = x + self.count + self.weight
            delattr(self, name)
            return out

    with pytest.raises(poptorch.Error, match=f"{kind} {name} is removed from the model when calling"):
        poptorch.inferenceModel(Model())(torch.ones(2))


def test_buffers_must_be_plain_tensors():
    model = TwoStages()
    model.register_buffer("mask", nn.Parameter(torch.ones(1)))
    with pytest.raises(poptorch.Error, match="All buffers must be an instance of torch.Tensor .Got .*Parameter"):
        poptorch.trainingModel(model, options())


def test_buffers_changed_in_place_reach_the_host_but_are_refused_with_broadcast_replicas():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x, labels):
            self.count.add_(1)
            return F.cross_entropy(self.layer(x), labels)

    model = Model()
    executor = poptorch.trainingModel(model, options(1, 4, 1))
    executor(*data(8))
    assert model.count.item() == 4
    with pytest.raises(poptorch.Error, match="broadcastBuffers"):
        poptorch.trainingModel(Model(), options(1, 4, 2))(*data(8))


class Tied(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 6))
        self.first, self.second = poptorch.Block("a", ipu_id=first), poptorch.Block("b", ipu_id=second)

    def forward(self, x):
        with self.first:
            x = x @ self.weight
        with self.second:
            return x @ self.weight.t()


def test_a_weight_must_be_on_one_ipu_of_a_pipeline():
    pipelined = poptorch.Options().deviceIterations(2)
    with pytest.raises(poptorch.Error, match="popart_exception.*Can not copy variable tensor weight between virtual"):
        poptorch.inferenceModel(Tied(0, 1), pipelined)(torch.ones(2, 6))
    sharded = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    for executor in (poptorch.inferenceModel(Tied(0, 1), sharded), poptorch.inferenceModel(Tied(0, 0))):
        assert torch.equal(executor(torch.ones(2, 6)), torch.full((2, 6), 36.0))


def test_a_stage_must_be_on_one_ipu():
    stages = poptorch.PipelinedExecution(poptorch.Stage("a", "b"))
    with pytest.raises(poptorch.Error, match=r"same pipeline stage 0, but different virtual graph ids \[0, 1\]"):
        poptorch.inferenceModel(Tied(0, 1), poptorch.Options().deviceIterations(2).setExecutionStrategy(stages))(
            torch.ones(2, 6)
        )


# ---------------------------------------------------------------------- output periods and clipping

EVERY_N = poptorch.OutputMode.EveryN


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            lambda: options(D=2, mode=(EVERY_N, 4), sharded=True),
            r"Return period must be <= to the number of batches per step \(the period is 4, deviceIterations is 2\)",
        ),
        (
            lambda: options(D=4, mode=(EVERY_N, 3), sharded=True),
            r"Return period must be a factor of the number of batches per step \(the period is 3, deviceIterations "
            r"is 4\)",
        ),
        (
            lambda: options(D=2, mode=(EVERY_N, 2)),
            r"EVERYN is not valid for pipelined models; use another OutputMode \(the period is 2,",
        ),
    ],
    ids=["too long", "does not divide", "pipeline"],
)
def test_output_periods_that_popart_refuses(opts, message):
    """popart dataflow.cpp:218-231, popx/irlowering.cpp:3185-3189; the periods all divide the micro-batches."""
    made = opts()
    with pytest.raises(poptorch.Error, match=message):
        poptorch.trainingModel(TwoStages(), made).compile(*data(12 * int(made.device_iterations)))


def test_a_model_on_one_ipu_may_return_every_nth_output():
    executor = poptorch.inferenceModel(nn.Identity(), poptorch.Options().deviceIterations(4).outputMode(EVERY_N, 2))
    assert executor(torch.arange(4.0)).tolist() == [1.0, 3.0]


def clipped(schedule, *, max_grad_norm=1.0, sharded=False):
    opts = options(sharded=sharded)
    if schedule is not None:
        opts._Popart.set("accumulateOuterFragmentSettings.schedule", int(schedule))
    model = TwoStages()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, max_grad_norm=max_grad_norm)
    poptorch.trainingModel(model, opts, optimizer).compile(*data(8))


SCHEDULE = popart.AccumulateOuterFragmentSchedule


def test_clipping_in_a_pipeline_needs_another_schedule_than_serial():
    """popart transforms/clipweightgradientsbynorm.cpp:485-496."""
    message = r"Incompatible accumulateOuterFragmentSchedule used with gradient clipping.*max_grad_norm is 1.0"
    with pytest.raises(poptorch.Error, match=message):
        clipped(SCHEDULE.Serial)
    clipped(SCHEDULE.Serial, max_grad_norm=float("inf"))
    clipped(SCHEDULE.Serial, sharded=True)
    clipped(SCHEDULE.Scheduler)
    clipped(None)

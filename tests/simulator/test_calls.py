"""Calls of the simulator's executors: batches, outputs, weights and random numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options, train_plainly
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


MODES = [
    (poptorch.OutputMode.Final, [2, 3], [2]),
    (poptorch.OutputMode.Sum, [2, 3], [2]),
    ((poptorch.OutputMode.EveryN, 2), [8, 3], [8]),
    (poptorch.OutputMode.All, [16, 3], [16]),
    (None, [2, 3], [2]),
]


@pytest.mark.parametrize(("mode", "out_shape", "loss_shape"), MODES)
def test_output_modes_have_poptorchs_shapes(mode, out_shape, loss_shape):
    """Shapes for D=2, G=4, R=2 and an output of (1, 3) per micro-batch, as seen on PopTorch's own front end."""
    model = poptorch.trainingModel(TwoStages(), options(2, 4, 2, mode, sharded=isinstance(mode, tuple)))
    out, loss = model(*data(16))
    assert list(out.shape) == out_shape
    assert list(loss.shape) == loss_shape


def test_outputs_are_in_the_order_of_the_inputs():
    """Inputs and outputs have the order [device iteration][accumulation][replica][micro-batch] in every output mode."""
    torch.manual_seed(0)
    model = TwoStages()
    x, labels = data(32)
    with torch.no_grad():
        expected = model(x, labels)[0].reshape(8, 2, 2, 3)  # [D x G][R][m]

    def outputs(mode):
        wrapped = copy.deepcopy(model)
        still = poptorch.optim.SGD(wrapped.parameters(), lr=0.0)
        executor = poptorch.trainingModel(wrapped, options(2, 4, 2, mode, sharded=True), still)
        out, loss = executor(x, labels)
        return out.reshape(-1, 2, 2, 3), loss.reshape(-1, 2)

    out, losses = outputs(poptorch.OutputMode.All)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(outputs((poptorch.OutputMode.EveryN, 2))[0], expected[1::2])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Final)[0], expected[-1:])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Sum)[0], expected.sum(0, keepdim=True))
    torch.testing.assert_close(outputs(poptorch.OutputMode.Final)[1], losses[-1:])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Sum)[1], losses.sum(0, keepdim=True))


def test_a_program_keeps_the_training_mode_of_its_compilation():
    class Noisy(TwoStages):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, labels):
            dropped = self.dropout(torch.ones_like(x))
            return (dropped == 0).float().mean(), super().forward(x, labels)

    model = Noisy().train()
    executor = poptorch.trainingModel(model, options())
    shares = []
    for mode in (model.train, model.eval):
        mode()
        shares.append(executor(*data(80))[0].item())
        assert model.training == (mode == model.train)
    assert all(0.3 < share < 0.7 for share in shares)


def test_weights_reach_the_host_when_they_are_read():
    model = TwoStages()
    before = model.first.weight.detach().clone()
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor(*data(8))
    assert not torch.equal(model.first.weight.detach(), before)
    assert type(model).__name__ == "PoptorchTwoStages"
    plain = executor.state_dict()["first.weight"]
    assert type(plain) is torch.Tensor


def test_weights_reach_the_ipu_through_load_state_dict():
    model = TwoStages()
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.0))
    executor(*data(8))
    state = {name: torch.zeros_like(tensor) for name, tensor in executor.state_dict().items()}
    executor.load_state_dict(state)
    out, _ = executor(*data(8))
    assert not out.any()


def test_an_inference_model_follows_the_training_of_the_same_model():
    class Both(TwoStages):
        def forward(self, x, labels=None):
            if labels is not None:
                return super().forward(x, labels)
            return self.second(torch.tanh(self.first(x)))

    torch.manual_seed(0)
    model = Both()
    training = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
    inference = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))
    x, labels = data(8)
    for _ in range(2):
        training(x, labels)
        expected = model.second(torch.tanh(model.first(x))).detach()
        torch.testing.assert_close(inference(x), expected)


def test_optimizer_state_moves_through_the_hosts_state_dict():
    torch.manual_seed(0)
    model = TwoStages()
    fresh = copy.deepcopy(model)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1)
    assert optimizer.state_dict()["ipu_state"] is None
    executor = poptorch.trainingModel(model, options(), optimizer)
    executor(*data(8, 0))
    state = copy.deepcopy(optimizer.state_dict())
    assert "Accl1___first.weight" in state["ipu_state"]
    fresh.load_state_dict(executor.state_dict())
    executor(*data(8, 1))

    other = poptorch.optim.AdamW(fresh.parameters(), lr=0.1)
    other.load_state_dict(state)
    resumed = poptorch.trainingModel(fresh, options(), other)
    resumed(*data(8, 1))
    torch.testing.assert_close(dict(fresh.state_dict()), dict(executor.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("state", "message"), [({}, "empty"), ({"state": {}, "param_groups": []}, "Only IPU optimizer states")]
)
def test_foreign_optimizer_states_are_refused(state, message):
    optimizer = poptorch.optim.SGD(TwoStages().parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=message):
        optimizer.set_state_dict(state)


def test_the_device_has_its_own_random_state_that_can_be_restored():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    executor = poptorch.inferenceModel(Noisy(), poptorch.Options().randomSeed(7))
    host = torch.get_rng_state()
    ones = torch.ones(4, 50)
    first = executor(ones)
    assert torch.equal(torch.get_rng_state(), host)
    state = executor.rng_state
    second = executor(ones)
    executor.rng_state = state
    assert torch.equal(executor(ones), second)
    assert not torch.equal(first, second)


class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


def test_the_seed_advances_with_every_micro_batch_and_is_restored():
    """The lower 32 bits count the replicas of each micro-batch, the upper 32 the micro-batches (getrandomseedx.cpp)."""
    executor = poptorch.inferenceModel(
        Drops(), poptorch.Options().randomSeed(7).deviceIterations(3).replicationFactor(2)
    )
    ones = torch.ones(6, 50)
    executor.compile(ones)
    states = [executor.rng_state]
    outputs = []
    for _ in range(2):
        outputs.append(executor(ones))
        states.append(executor.rng_state)
    assert [state[0] for state in states] == [7, 7 + 6 + (3 << 32), 7 + 12 + (6 << 32)]
    assert states[0][1:] != states[1][1:] != states[2][1:]
    executor.rng_state = states[1]
    assert torch.equal(executor(ones), outputs[1])
    assert executor.rng_state == states[2]
    executor.rng_state = [7]
    assert torch.equal(executor(ones), outputs[0])


def test_the_random_state_of_another_number_of_ipus_is_refused():
    """PopART's state has the same number of words for each IPU (popart/willow popx/devicex.cpp:1189-1204)."""
    two, four = (
        poptorch.inferenceModel(Drops(), poptorch.Options().randomSeed(7).replicationFactor(replicas))
        for replicas in (2, 4)
    )
    for executor in (two, four):
        executor.compile(torch.ones(4))
    with pytest.raises(poptorch.Error, match="received rngState of size 141312; was expecting size 70656"):
        two.rng_state = four.rng_state
    two.rng_state = four.rng_state[:-1]  # a state of an earlier version of the simulator


def test_the_lower_half_of_the_seed_does_not_carry_into_the_upper_half():
    executor = poptorch.inferenceModel(Drops(), poptorch.Options().randomSeed(2**32 - 1))
    executor(torch.ones(2))
    assert executor.rng_state[0] == 1 << 32


def test_the_seed_of_a_model_without_random_numbers_stays():
    executor = poptorch.inferenceModel(nn.Identity(), poptorch.Options().randomSeed(7))
    executor(torch.ones(2))
    assert executor.rng_state[0] == 7


class WithConstants(nn.Module):
    """Returns outputs that depend on inputs, weights or random numbers, and outputs that depend on none of these."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("number", torch.tensor([3, 4]))

    def forward(self, x):
        filled = torch.zeros(1, 2)
        filled += x
        table = torch.arange(3) * 2
        return {
            "batched": [x, self.weight, torch.rand(2), filled],
            "constant": [torch.ones(2, 2), torch.tensor(5.0) + 1, table.sum(), self.number],
        }


@pytest.mark.parametrize("mode", [poptorch.OutputMode.All, poptorch.OutputMode.Final, poptorch.OutputMode.Sum])
def test_constant_outputs_are_not_batched(mode):
    """The host knows them when it compiles (Compiler.cpp:1310-1319), so that they have no micro-batches."""
    opts = poptorch.Options().deviceIterations(3).replicationFactor(2).outputMode(mode)
    executor = poptorch.inferenceModel(WithConstants(), opts)
    out = executor(torch.ones(6, 2))
    rows = 6 if mode == poptorch.OutputMode.All else 2
    assert [tuple(tensor.shape) for tensor in out["batched"]] == [(rows, 2), (2 * rows,), (2 * rows,), (rows, 2)]
    ones, six, total, number = out["constant"]
    assert torch.equal(ones, torch.ones(2, 2))
    assert (six.item(), six.dim()) == (6.0, 0)
    assert (total.item(), total.dtype) == (6, torch.int32)
    assert number.tolist() == [3, 4]
    assert len(executor.getPerfCounters()["output"]) == 4


def test_the_outputs_of_a_branch_are_batched():
    class Branch(nn.Module):
        def forward(self, x):
            return poptorch.cond(x.sum() > 1, lambda t: t * 2, [x], lambda: torch.zeros(1), [])[0]

    executor = poptorch.inferenceModel(Branch(), poptorch.Options().deviceIterations(2))
    assert executor(torch.tensor([1.0, 3.0])).tolist() == [0.0, 6.0]


def test_half_precision_models_train_and_keep_their_types():
    torch.manual_seed(0)
    model = TwoStages().half()
    reference = copy.deepcopy(model).float()
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.1))
    x, labels = data(8)
    out, loss = executor(x.half(), labels)
    assert (out.dtype, loss.dtype, model.first.weight.dtype) == (torch.float16,) * 3
    train_plainly(
        reference, [(x.half().float(), labels)], torch.optim.SGD(reference.parameters(), lr=0.1), micro_batches=4
    )
    for name, weight in executor.state_dict().items():
        assert torch.equal(weight, reference.state_dict()[name].half())


def test_a_random_state_that_is_set_while_detached_takes_effect():
    executor = poptorch.inferenceModel(nn.Dropout(0.5), poptorch.Options().randomSeed(1))
    x = torch.ones(64)
    executor.compile(x)
    state = executor.rng_state
    first = executor(x)
    assert not torch.equal(executor(x), first)
    executor.detachFromDevice()
    executor.rng_state = state
    assert executor.rng_state == state
    assert torch.equal(executor(x), first)


def test_a_cross_entropy_over_images_trains():
    """torch 2.0.1 cannot infer the shape of this loss; PopTorch can."""

    class Segment(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 3, 1)

        def forward(self, x, target):
            return torch.nn.functional.cross_entropy(self.layer(x), target)

    model = Segment()
    x, target = torch.randn(2, 1, 4, 4), torch.randint(3, (2, 4, 4))
    with torch.no_grad():
        expected = model(x, target)
    assert torch.allclose(poptorch.trainingModel(model)(x, target), expected)

"""The PopTorch simulator: batches, outputs, updates, weights and the errors of PopTorch."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine
from vit_ipu.simulator.__main__ import main as simulator_main


@pytest.fixture(autouse=True)
def sixteen_ipus():
    machine.configure(16)
    yield
    machine.configure(16)


class TwoStages(nn.Module):
    """Two linear layers on two IPUs, with the loss in the last block."""

    def __init__(self, *, loss: str = "function") -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.dropout = nn.Dropout(0.0)
        self.loss = loss
        poptorch.BeginBlock(self.first, "first", ipu_id=0)
        poptorch.BeginBlock(self.second, "second", ipu_id=1)

    def forward(self, x, labels):
        out = self.second(self.dropout(torch.tanh(self.first(x))))
        if self.loss == "function":
            return out, F.cross_entropy(out, labels)
        log_probabilities = F.log_softmax(out, dim=1)
        hard = -log_probabilities.gather(1, labels[:, None])
        return out, poptorch.identity_loss(hard, reduction="mean")


def options(D=1, G=4, R=1, mode=None, **_):
    made = poptorch.Options().deviceIterations(D).replicationFactor(R).randomSeed(0)
    made.Training.gradientAccumulation(G)
    if mode is not None:
        made.outputMode(*mode) if isinstance(mode, tuple) else made.outputMode(mode)
    return made


def data(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=dtype), torch.randint(3, (count,), generator=generator)


def train_plainly(model, batches, optimizer, *, micro_batches, reduction="mean"):
    """Each batch is one update: the mean, or the sum, of the micro-batches' mean losses is differentiated."""
    for x, labels in batches:
        optimizer.zero_grad()
        losses = [model(a, b)[1] for a, b in zip(x.chunk(micro_batches), labels.chunk(micro_batches))]
        total = torch.stack(losses).sum() if reduction == "sum" else torch.stack(losses).mean()
        total.backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------- outputs

MODES = [
    (poptorch.OutputMode.Final, [2, 3], [2]),
    (poptorch.OutputMode.Sum, [2, 3], [2]),
    ((poptorch.OutputMode.EveryN, 2), [8, 3], [8]),
    (poptorch.OutputMode.All, [16, 3], [16]),
    (None, [2, 3], [2]),
]


@pytest.mark.parametrize(("mode", "out_shape", "loss_shape"), MODES)
def test_output_modes_have_poptorchs_shapes(mode, out_shape, loss_shape):
    """D=2, G=4, R=2 and a micro-output of (1, 3), as seen on PopTorch's own front end."""
    model = poptorch.trainingModel(TwoStages(), options(2, 4, 2, mode))
    out, loss = model(*data(16))
    assert list(out.shape) == out_shape
    assert list(loss.shape) == loss_shape


def test_outputs_are_in_the_order_of_the_inputs():
    """[device iteration][accumulation][replica][micro-batch] in, the same out, whichever the mode selects."""
    torch.manual_seed(0)
    model = TwoStages()
    x, labels = data(32)
    with torch.no_grad():
        expected = model(x, labels)[0].reshape(8, 2, 2, 3)  # [D x G][R][m]

    def outputs(mode):
        wrapped = copy.deepcopy(model)
        still = poptorch.optim.SGD(wrapped.parameters(), lr=0.0)
        executor = poptorch.trainingModel(wrapped, options(2, 4, 2, mode), still)
        out, loss = executor(x, labels)
        return out.reshape(-1, 2, 2, 3), loss.reshape(-1, 2)

    out, losses = outputs(poptorch.OutputMode.All)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(outputs((poptorch.OutputMode.EveryN, 2))[0], expected[1::2])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Final)[0], expected[-1:])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Sum)[0], expected.sum(0, keepdim=True))
    torch.testing.assert_close(outputs(poptorch.OutputMode.Final)[1], losses[-1:])
    torch.testing.assert_close(outputs(poptorch.OutputMode.Sum)[1], losses.sum(0, keepdim=True))


# ---------------------------------------------------------------------------------------- updates

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


def test_one_call_does_d_updates():
    torch.manual_seed(0)
    model = TwoStages()
    reference = copy.deepcopy(model)
    x, labels = data(48)
    executor = poptorch.trainingModel(model, options(3, 4, 2), poptorch.optim.SGD(model.parameters(), lr=0.1))
    executor(x, labels)
    batches = list(zip(x.chunk(3), labels.chunk(3)))
    train_plainly(reference, batches, torch.optim.SGD(reference.parameters(), lr=0.1), micro_batches=8)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_reduction_by_sum():
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
def test_what_is_constant_depends_on_how_the_optimizer_was_made(make, change, message):
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


def test_the_mode_of_a_program_is_that_of_its_compilation():
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


# ---------------------------------------------------------------------------------------- weights


def test_weights_reach_the_host_when_they_are_read():
    model = TwoStages()
    before = model.first.weight.detach().clone()
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
    executor(*data(8))
    assert not torch.equal(model.first.weight.detach(), before)
    assert type(model).__name__ == "PoptorchTwoStages"
    plain = executor.state_dict()["first.weight"]
    assert type(plain) is torch.Tensor


def test_weights_changed_on_the_host_reach_the_ipu_when_told():
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


def test_random_state_is_the_devices_own_and_can_be_restored():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    executor = poptorch.inferenceModel(Noisy(), poptorch.Options().randomSeed(7))
    host = torch.get_rng_state()
    ones = torch.ones(4, 50)
    first = executor(ones)
    assert torch.equal(torch.get_rng_state(), host)
    state = executor.rng_state
    assert state[0] == 7
    second = executor(ones)
    executor.rng_state = state
    assert torch.equal(executor(ones), second)
    assert not torch.equal(first, second)


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


# ----------------------------------------------------------------------------------------- errors


def test_too_few_micro_batches():
    with pytest.raises(poptorch.Error, match=r"number of pipeline stages \(3\).* additional 1 stages when training"):
        poptorch.trainingModel(TwoStages(), options(1, 2, 1))(*data(4))
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be .* stages \(2\)"):
        poptorch.inferenceModel(TwoStages(), poptorch.Options())(*data(2))


def test_pipeline_recomputation_needs_a_pipeline():
    sharded = options(1, 3, 1).setExecutionStrategy(poptorch.ShardedExecution())
    sharded._Popart.set("autoRecomputation", 3)
    with pytest.raises(poptorch.Error, match="Invalid RecomputationType::Pipeline"):
        poptorch.trainingModel(TwoStages(), sharded)(*data(6))


def test_ipus_are_counted_up_to_the_highest():
    class Skipping(TwoStages):
        def __init__(self):
            super().__init__()
            poptorch.removeBlocks(self)
            poptorch.BeginBlock(self.second, "second", ipu_id=3)

    executor = poptorch.trainingModel(Skipping(), options(1, 3, 1))
    executor(*data(6))
    assert machine.machine.ipus_held == 4


def test_sharded_execution_has_no_minimum():
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
    rounded = options(1, 7, 1).autoRoundNumIPUs(True)
    executor = poptorch.trainingModel(ThreeStages(), rounded)
    executor(x, labels)
    assert machine.machine.ipus_held == 4


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda out, labels: out, "find a loss"),
        (lambda out, labels: (F.cross_entropy(out, labels), F.mse_loss(out, out * 2)), "Multiple independent losses"),
    ],
)
def test_exactly_one_final_loss(forward, message):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, labels):
            return forward(self.layer(x), labels)

    with pytest.raises(poptorch.Error, match=message):
        poptorch.trainingModel(Model())(*data(2))


def test_losses_that_lead_to_one_are_one():
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


def test_operations_after_a_block_has_ended():
    class Model(nn.Module):
        def forward(self, x):
            with poptorch.Block("only", ipu_id=0):
                y = x * 2
            return y + 1

    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(Model())(torch.ones(2))


CALLS = [
    (lambda x, y: (x[:4], y[:4]), "Shape mismatch for x: expected .*8, 6.* but got .*4, 6"),
    (lambda x, y: (x.double(), y), "Data type mismatch for x: expected torch.float32 but got torch.float64"),
    (lambda x, y: (x, None), "Type mismatch for labels"),
]


@pytest.mark.parametrize(("change", "message"), CALLS)
def test_later_calls_must_be_like_the_first(change, message):
    executor = poptorch.trainingModel(TwoStages(), options())
    x, labels = data(8)
    executor(x, labels)
    with pytest.raises(poptorch.Error, match=message):
        executor(*change(x, labels))


def test_a_batch_that_does_not_divide():
    with pytest.raises(AssertionError, match=r"batch dimension \(6\) must be a multiple of .* = 4"):
        poptorch.trainingModel(TwoStages(), options())(*data(6))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((1, 2, 3), {}, AssertionError, "Too many arguments"),
        ((1,), {"label": 2}, AssertionError, "label is not a valid parameter"),
        ((1,), {"x": 2}, AssertionError, "x was passed more than once"),
        ((torch.ones(4, 6),), {}, poptorch.Error, "Mandatory parameter labels missing"),
    ],
)
def test_arguments_must_fit_the_forward(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        poptorch.trainingModel(TwoStages(), options())(*args, **kwargs)


def test_named_and_default_arguments():
    class Model(nn.Module):
        def forward(self, x, scale=2.0, *rest, shift=None, **more):
            return x * scale + (0 if shift is None else shift) + more.get("extra", 0)

    model = poptorch.inferenceModel(Model())
    x = torch.ones(2, 2)
    assert torch.equal(model(x, shift=x, extra=x), 4 * x)
    with pytest.raises(poptorch.Error, match="Keys mismatch for named arguments: Missing arguments: extra"):
        model(x, shift=x)


def test_options_freeze_when_used():
    used = options()
    poptorch.trainingModel(TwoStages(), used)
    for change in (lambda: used.deviceIterations(2), lambda: used.Training.gradientAccumulation(2)):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change()
    assert used.clone().deviceIterations(5).device_iterations == 5


def test_wrapping_twice_and_annotating_twice():
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


def test_inference_takes_no_accumulation():
    with pytest.raises(poptorch.Error, match=r"gradientAccumulation to 1.*deviceIterations"):
        poptorch.inferenceModel(TwoStages(), options())


def test_a_reassigned_buffer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count = self.count + 1
            return x + self.count

    with pytest.raises(poptorch.Error, match=r"Buffer count is reassigned.*self.count.copy_"):
        poptorch.inferenceModel(Model())(torch.ones(2))


def test_buffers_changed_in_place_reach_the_host_but_not_with_broadcast_replicas():
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


def test_what_is_not_simulated_says_so():
    executor = poptorch.trainingModel(TwoStages(), options())
    for unsimulated in (
        lambda: executor.getLatency(),
        lambda: poptorch.load("x"),
        lambda: poptorch.inferenceModel(TwoStages(), poptorch.Options().useIpuModel(True)),
        lambda: poptorch.inferenceModel(TwoStages(), poptorch.Options().enableSyntheticData(True)),
    ):
        with pytest.raises(NotImplementedError, match="is not simulated"):
            unsimulated()
    with pytest.raises(AttributeError):
        poptorch.nonsense  # noqa: B018


# ---------------------------------------------------------------------------------------- machine


def test_executors_share_the_machines_ipus():
    machine.configure(2)
    model = TwoStages()
    training = poptorch.trainingModel(model, options())
    training(*data(8))
    inference = poptorch.inferenceModel(TwoStages(), poptorch.Options().deviceIterations(2))
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)"):
        inference(*data(4))
    training.detachFromDevice()
    inference(*data(4))
    with pytest.raises(poptorch.Error, match="Failed to acquire"):
        training(*data(8))
    inference.detachFromDevice()
    training(*data(8))
    assert training.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="already attached"):
        training.attachToDevice()
    training.destroy()
    assert machine.machine.ipus_held == 0
    with pytest.raises(poptorch.Error, match="not been compiled"):
        training.detachFromDevice()


def test_a_machine_that_is_too_small():
    machine.configure(1)
    with pytest.raises(poptorch.Error, match="No device found on the system with 2 IPUs"):
        poptorch.trainingModel(TwoStages(), options())(*data(8))


def test_at_most_64_ipus_a_process():
    machine.configure(256)
    with pytest.raises(poptorch.Error, match="Too many IPUs requested"):
        poptorch.trainingModel(TwoStages(), options(1, 4, 64))(*data(256))


def test_an_executor_that_is_forgotten_frees_its_ipus():
    executor = poptorch.trainingModel(TwoStages(), options())
    executor(*data(8))
    assert machine.machine.ipus_held == 2
    del executor
    import gc

    gc.collect()
    assert machine.machine.ipus_held == 0


def test_offline_compilation_holds_nothing_and_runs_nothing():
    executor = poptorch.trainingModel(TwoStages(), options().useOfflineIpuTarget())
    executor.compile(*data(8))
    assert executor.isCompiled()
    assert machine.machine.ipus_held == 0
    with pytest.raises(AssertionError, match="offline device"):
        executor(*data(8))


# ----------------------------------------------------------------------------------------- module


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, check=False)


def test_install_makes_a_module_with_a_valid_spec():
    code = (
        "import vit_ipu.simulator as s; s.install(8)\n"
        "import importlib.util, poptorch, poptorch.optim, poptorch.enums\n"
        "from poptorch.options import Options\n"
        "assert poptorch.__simulated__ and importlib.util.find_spec('poptorch').name == 'poptorch'\n"
        "assert poptorch.trainingModel is s.trainingModel and Options is poptorch.Options\n"
        "print(poptorch.ipuHardwareIsAvailable(8), poptorch.ipuHardwareIsAvailable(16), poptorch.ipuHardwareVersion())"
    )
    done = run(code)
    assert (done.stdout, done.returncode) == ("True False 2\n", 0), done.stderr


def test_importing_the_simulator_installs_nothing():
    assert run("import vit_ipu.simulator, sys; assert 'poptorch' not in sys.modules").returncode == 0


def test_the_real_poptorch_is_not_replaced():
    code = (
        "import sys, types; sys.modules['poptorch'] = types.ModuleType('poptorch')\n"
        "import vit_ipu.simulator as s\n"
        "try: s.install()\n"
        "except ImportError as error: print(error)"
    )
    assert "the real PopTorch is already imported" in run(code).stdout


PROGRAM = """
import sys, torch, poptorch
model = torch.nn.Linear(2, 2)
out = poptorch.inferenceModel(model)(torch.ones(3, 2))
print(sys.argv[1:], tuple(out.shape), poptorch.ipuHardwareIsAvailable(4), __name__)
"""


def test_a_poptorch_script_runs_unmodified(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    for how in (["program.py", "--a", "1"], ["-m", "program", "--a", "1"]):
        command = [sys.executable, "-m", "vit_ipu.simulator", "--ipus", "4", *how]
        done = subprocess.run(command, capture_output=True, text=True, cwd=str(tmp_path), check=False)
        assert done.stdout == "['--a', '1'] (3, 2) True __main__\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["."], "there is no script ."),
        ([], "give a SCRIPT, or -m MODULE"),
        (["--ipus", "0", "x.py"], "--ipus 0: a machine has at least one"),
        (["--device", "cuda", "x.py"], "no CUDA device"),
    ],
)
def test_a_program_that_cannot_start_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        simulator_main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err

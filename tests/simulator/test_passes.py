"""Micro-batches that pass together, and passes that are recorded, give the results of passes one by one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.execution import merged, recordings
from vit_ipu.simulator.execution.passes import Passes
from vit_ipu.simulator.execution.replay import Replay

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


class Layers(nn.Module):
    """Attention, normalisation, GELU, a slice that is written to, a buffer, and an output that no input reaches."""

    def __init__(self):
        super().__init__()
        self.project, self.norm = nn.Linear(6, 24), nn.LayerNorm(8)
        self.patches = nn.Conv1d(1, 8, 2, stride=2)
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0]))

    def forward(self, x, labels):
        tokens = self.patches(x.unsqueeze(1)).transpose(1, 2)
        queries, keys, values = self.project(x).unsqueeze(1).expand(-1, 3, -1).chunk(3, -1)
        attention = torch.softmax(queries @ keys.transpose(1, 2) * 8**-0.5, -1)
        tokens = self.norm(tokens + attention @ values)
        changed = F.gelu(tokens).clone()
        changed[:, 0] += tokens[:, 1].relu()
        out = self.head(changed.mean(1)) * self.scale.to(x.dtype)
        return out, F.cross_entropy(out.float(), labels), self.scale * 2


class Parts(nn.Module):
    """Calls a function on the output of a layer."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.second, self.middle = nn.Linear(6, 5), nn.Linear(5, 3), middle

    def forward(self, x, labels):
        out = self.second(self.middle(self.first(x)))
        return out, F.cross_entropy(out.float(), labels)


class InBatch(nn.Module):
    """Batch normalisation: values of a micro-batch depend on each other, and statistics change."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x, labels):
        out = self.linear(self.norm(x))
        return out, F.cross_entropy(out.float(), labels)


def train(model, mode, *, half=False, stochastic=False, calls=3, resume=None, D=2, R=1, G=4):
    """Returns weights, outputs and random state after some calls."""
    model = copy.deepcopy(model)
    if half:
        model = model.half()
    made = options(D, G, R)
    made.Precision.enableStochasticRounding(stochastic)
    made.Precision.setPartialsType(torch.float16)
    if resume is not None:
        model.load_state_dict(resume[0])
    with poptorch.numerics(mode):
        executor = poptorch.trainingModel(model, made, poptorch.optim.SGD(model.parameters(), lr=0.1))
        batches = [data(8 * D * R, seed, torch.float16 if half else torch.float32) for seed in range(6)]
        executor.compile(*batches[0])
        if resume is not None:
            executor.rng_state = resume[2]
            batches = batches[3:]
        outputs = [tensor for batch in batches[:calls] for tensor in executor(*batch)]
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, outputs, executor.rng_state


@pytest.fixture
def one_by_one(monkeypatch):
    """Returns a function that trains without the faster ways."""

    def call(*arguments, **how):
        with monkeypatch.context() as context:
            context.setattr(Passes, "_find_way_on_host", lambda self, trace, half: None)
            return train(*arguments, **how)

    return call


@pytest.fixture
def ways(monkeypatch):
    """Returns what the passes were: "together" and "replayed", once for each update or micro-batch."""
    taken = []
    together, replay = merged._together, Replay.run

    def noted_together(*arguments):
        results = together(*arguments)
        taken.append("together")
        return results

    def noted_replay(*arguments):
        taken.append("replayed")
        return replay(*arguments)

    monkeypatch.setattr(merged, "_together", noted_together)
    monkeypatch.setattr(Replay, "run", noted_replay)
    return taken


def assert_same(found, expected, *, rounding=0.0):
    torch.testing.assert_close(found[0], expected[0], rtol=rounding, atol=rounding)
    torch.testing.assert_close(found[1], expected[1], rtol=rounding, atol=rounding)


def _with_frozen_parts():
    """Returns layers whose norm, in the middle, and convolution's weight, at the start, are not trained."""
    model = Layers()
    for parameter in (model.norm.weight, model.norm.bias, model.patches.weight):
        parameter.requires_grad_(False)
    return model


MODELS = {
    "layers": Layers(),
    "frozen parts": _with_frozen_parts(),
    "two stages": TwoStages(),
    "identity loss": TwoStages(loss="identity"),
}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_micro_batches_that_pass_together_train_as_one_by_one(one_by_one, ways, model, half, replicas):
    found = train(model, "exact", half=half, R=replicas)
    assert ways == ["together"] * 6  # two updates in each of three calls
    assert_same(found, one_by_one(model, "exact", half=half, R=replicas), rounding=1e-3 if half else 1e-5)


def test_no_more_micro_batches_pass_together_than_fit(monkeypatch, one_by_one, ways):
    sizes = []
    together = merged._together

    def noted(forward, micro_batches, scale_of):
        sizes.append(len(micro_batches))
        return together(forward, micro_batches, scale_of)

    monkeypatch.setattr(merged, "_together", noted)
    executor = poptorch.trainingModel(Layers(), options(1, 8))
    executor.compile(*data(16))
    most = merged.MOST_BYTES // executor._program._passes._merged._most
    monkeypatch.setattr(merged, "MOST_BYTES", 3 * most)
    found = train(MODELS["layers"], "exact", calls=1)
    assert sizes == [3, 1] * 2
    assert_same(found, one_by_one(MODELS["layers"], "exact", calls=1), rounding=1e-5)


def _draws(x):
    return F.dropout(x, 0.5)


def _fills(x):
    filled = torch.zeros(5, dtype=x.dtype)
    filled.add_(x[0])
    return x + filled


UNFIT = {"drawing": _draws, "a tensor that is filled": _fills}


@pytest.mark.parametrize("middle", UNFIT.values(), ids=UNFIT.keys())
def test_models_that_cannot_pass_together_pass_one_by_one(one_by_one, ways, middle):
    model = Parts(middle)
    assert_same(train(model, "exact"), one_by_one(model, "exact"))
    assert ways == []


@pytest.mark.parametrize(("mode", "half"), [("exact", False), ("ipu", True)])
def test_statistics_of_batch_norm_change_with_each_micro_batch(one_by_one, ways, mode, half):
    model = InBatch()
    assert_same(train(model, mode, half=half), one_by_one(model, mode, half=half))
    assert ways == []


@pytest.mark.parametrize("mode", ["exact", "ipu"])
def test_inputs_that_the_model_changes_are_changed(mode):
    class Changing(TwoStages):
        def forward(self, x, labels):
            x.mul_(2)
            return super().forward(x, labels)

    with poptorch.numerics(mode):
        model = Changing()
        executor = poptorch.trainingModel(model, options(1, 4))
        for _ in range(3):
            x, labels = data(8)
            executor(x, labels)
            torch.testing.assert_close(x, 2 * data(8)[0])


def test_an_error_of_the_model_is_raised_as_one_by_one():
    calls = []

    def fails(x):
        calls.append(len(x))
        if len(calls) > 1:
            raise ValueError("the model's own")
        return x

    executor = poptorch.trainingModel(Parts(fails), options(1, 4))
    with pytest.raises(ValueError, match="the model's own"):
        executor(*data(8))
    assert all(weight.grad is None for weight in executor.model.parameters())


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_recorded_passes_give_the_bits_of_the_dispatch_mode(monkeypatch, ways, model, stochastic):
    found = train(model, "ipu", half=True, stochastic=stochastic)
    assert ways == ["replayed"] * 24
    monkeypatch.setattr(recordings, "MOST_BYTES", -1)
    expected = train(model, "ipu", half=True, stochastic=stochastic)
    assert len(ways) == 24
    assert_same(found, expected)
    assert found[2] == expected[2]


class Counting(Parts):
    """Changes a buffer in each pass; the order of the passes matters."""

    def __init__(self, dtype):
        super().__init__(torch.tanh)
        self.register_buffer("mean", torch.zeros(6, dtype=dtype))

    def forward(self, x, labels):
        self.mean.mul_(0.5).add_(x.to(self.mean.dtype).mean(0))
        out, loss = super().forward((x + self.mean.to(x.dtype)).half(), labels)
        return out, loss, self.mean.clone()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_buffers_change_in_the_order_of_the_micro_batches(monkeypatch, ways, dtype):
    def trained():
        model = Counting(dtype)
        for linear in (model.first, model.second):
            linear.half()
        return train(model, "ipu")

    torch.manual_seed(0)
    found = trained()
    assert ways == (["replayed"] * 24 if dtype == torch.float32 else [])
    torch.manual_seed(0)
    monkeypatch.setattr(recordings, "MOST_BYTES", -1)
    assert_same(found, trained())


def test_a_recorded_pass_draws_new_numbers_every_time(ways, monkeypatch):
    model = Parts(_draws)
    found = train(model, "ipu", half=True)
    assert ways == ["replayed"] * 24
    monkeypatch.setattr(recordings, "MOST_BYTES", -1)
    expected = train(model, "ipu", half=True)
    assert_same(found, expected)
    assert found[2] == expected[2]


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_recorded_passes_do_not_depend_on_the_number_of_threads(threads):
    expected = train(MODELS["layers"], "ipu", half=True, stochastic=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = train(MODELS["layers"], "ipu", half=True, stochastic=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same(found, expected)
    assert found[2] == expected[2]


@pytest.mark.parametrize("model", [MODELS["layers"], Parts(_draws)], ids=["layers", "drawing"])
def test_a_training_by_recorded_passes_resumes_bit_for_bit(model):
    whole, part = (train(model, "ipu", half=True, stochastic=True, calls=calls) for calls in (6, 3))
    resumed = train(model, "ipu", half=True, stochastic=True, resume=part)
    assert_same((resumed[0], [*part[1], *resumed[1]]), whole)
    assert resumed[2] == whole[2]


def test_clipped_values_of_recorded_passes_are_counted():
    def clipped(most):
        torch.manual_seed(0)
        model = Parts(lambda x: (x * 60000).clone() * 2e-5).half()
        with poptorch.numerics("ipu"), pytest.MonkeyPatch.context() as context:
            context.setattr(recordings, "MOST_BYTES", most)
            executor = poptorch.trainingModel(model, options(1, 4))
            executor(*data(8, dtype=torch.float16))
            return executor._program.num_clipped

    assert clipped(-1) == clipped(recordings.MOST_BYTES) > 0

"""float64 and int64 on the simulated IPU, which are float32 and int32 as in PopTorch (Utils.cpp:141-151)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

CONSTANT = np.linspace(-1.0, 1.0, 8)


@pytest.fixture(params=["exact", "ipu"])
def numerics(request):
    with poptorch.numerics(request.param):
        yield request.param


class Converts(nn.Module):
    """Asks for float64 in every way that a forward has, and then uses float32 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.register_buffer("mean", torch.from_numpy(CONSTANT))

    def forward(self, x):
        x = (x - self.mean).double() + torch.ones(8, dtype=torch.float64).to(torch.float64)
        x = x * torch.tensor(CONSTANT) + torch.from_numpy(CONSTANT).to(x.device)
        return self.layer(x.type(torch.float64) @ torch.eye(8))


LAYERS = {
    "linear": lambda: nn.Linear(8, 2),
    "convolution": lambda: nn.Conv2d(3, 4, 3),
    "batch norm": lambda: nn.BatchNorm2d(3).eval(),
    "layer norm": lambda: nn.LayerNorm(8),
    "float64 inside": Converts,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_float64_input_gives_what_its_float32_value_gives(layer, numerics):
    model = LAYERS[layer]()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 8, 8)))
    out = poptorch.inferenceModel(model)(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, poptorch.inferenceModel(model)(x.float()))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()
        torch.testing.assert_close(
            out, (_in_float64(expected, x) if layer == "float64 inside" else expected(x)).float()
        )


def _in_float64(model, x):
    x = (x - model.mean + 1) * torch.tensor(CONSTANT) + torch.tensor(CONSTANT)
    return model.layer(x)


def test_a_float64_input_trains_float32_weights(numerics):
    models = [nn.Linear(4, 1, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 4)))

    class Loss(nn.Module):
        def __init__(self, layer) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x, target):
            return nn.functional.mse_loss(self.layer(x), target)

    executors = [poptorch.trainingModel(Loss(model)) for model in models]
    for executor, dtype in zip(executors, (torch.float64, torch.float32)):
        executor(x.to(dtype), x.sum(1, keepdim=True).to(dtype))
    assert torch.equal(models[0].weight.detach(), models[1].weight.detach())


def test_float64_and_float32_of_the_same_number_are_equal(numerics):
    class Equal(nn.Module):
        def forward(self, x, y):
            return x == y

    number = torch.tensor([550.4], dtype=torch.float64)
    assert poptorch.inferenceModel(Equal())(number, number.float()).item()


def test_a_float64_result_of_a_cpu_operation_is_float32(numerics):
    class OnHost(nn.Module):
        def forward(self, x):
            return poptorch.CPU(lambda t: torch.from_numpy(t.numpy().astype(np.float64) * 2), "double")(x) @ torch.eye(
                2
            )

    assert torch.equal(poptorch.inferenceModel(OnHost())(torch.ones(1, 2)), torch.full((1, 2), 2.0))


def test_an_int64_input_keeps_the_lower_32_bits():
    out = poptorch.inferenceModel(nn.Identity())(torch.tensor([2**31, 2**32 + 5, -7]))
    assert out.dtype == torch.int32
    assert out.tolist() == [-(2**31), 5, -7]


def test_a_later_call_must_have_the_same_type_as_the_first():
    executor = poptorch.inferenceModel(nn.Linear(2, 2))
    executor(torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(
        poptorch.Error, match="Data type mismatch for input: expected torch.float64 but got torch.float"
    ):
        executor(torch.ones(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_float64_model_computes_in_float64_with_exact_numerics_only(dtype):
    """The loss is 1e-12 in float64, and 0 in float32."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False).double()
            nn.init.constant_(self.layer.weight, 1 + 1e-12)

        def forward(self, x):
            return (self.layer(x) - x).abs() * 1e12

    x = torch.ones(1, 1, dtype=dtype)
    expected = 1.0 if dtype == torch.float64 else 0.0  # weights are cast to the format of the activations
    assert poptorch.inferenceModel(Model())(x).item() == pytest.approx(expected, abs=1e-3)
    with poptorch.numerics("ipu"):
        assert poptorch.inferenceModel(Model())(x).item() == 0.0


@pytest.mark.parametrize("in_inference_mode", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_a_change_of_an_input_in_place_reaches_the_caller_in_every_format(dtype, in_inference_mode):
    """PoplarExecutable.cpp:160-168 copies the output to the input, converted."""

    class Model(nn.Module):
        def forward(self, x):
            x.add_(1)
            return x * 2

    with torch.inference_mode(in_inference_mode):
        x = torch.zeros(2, dtype=dtype)
        x += 3  # the tensor has changed before
        assert poptorch.inferenceModel(Model())(x).tolist() == [8, 8]
        assert (x.dtype, x.tolist()) == (dtype, [4, 4])

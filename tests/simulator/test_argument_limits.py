"""Arguments that PopTorch refuses although it has the operation, and losses that PopTorch does not find."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

X = torch.rand(2, 3, 8, 8)


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self.layer(x))


def infer(function, x=X):
    return poptorch.inferenceModel(Model(function).eval())(x)


REFUSED = {
    "class weights": (
        lambda x: F.cross_entropy(x, torch.zeros(2, 8, 8, dtype=torch.long, device=x.device), x[0, :, 0, 0]),
        'Parameter "weight" is unsupported',
    ),
    "bicubic": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
        "Only support align_corners=False",
    ),
    "dropout": (lambda x: F.dropout(x, 1.0, True), r"ratio value 1.0 is not valid. Please use a value in .* \[0,1\)"),
    "pooling": (lambda x: F.adaptive_avg_pool2d(x, 3), r"Input dim 0 \(8\) is not divisible by .* output dim \(3\)"),
    "embedding": (
        lambda x: F.embedding(
            torch.zeros(2, dtype=torch.long, device=x.device) + x[0, 0, 0, 0].to(torch.int64), x[0, 0], sparse=True
        ),
        "Unsupported aten::embedding operation",
    ),
}
ACCEPTED = {
    "no class weights": lambda x: F.cross_entropy(x, torch.zeros(2, 8, 8, dtype=torch.long, device=x.device)),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "bilinear by 3.5": lambda x: F.interpolate(x, size=(28, 28), mode="bilinear"),  # misc_nn_layers_test.py:76
    "dropout of nothing": lambda x: F.dropout(x, 0.0, True),
    "dropout in evaluation": lambda x: F.dropout(x, 1.0, False),
    "pooling": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "embedding": lambda x: F.embedding(
        torch.zeros(2, dtype=torch.long, device=x.device) + x[0, 0, 0, 0].to(torch.int64), x[0, 0]
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_is_refused(name):
    function, message = REFUSED[name]
    with pytest.raises(poptorch.Error, match=message):
        infer(function)


@pytest.mark.parametrize("name", ACCEPTED)
def test_other_arguments_are_accepted(name):
    infer(ACCEPTED[name])


@pytest.mark.parametrize("marked", [False, True])
def test_a_cross_entropy_of_soft_targets_is_a_loss_only_if_it_is_marked(marked):
    def loss(x):
        computed = F.cross_entropy(x, torch.full((2, 8), 0.125, device=x.device))
        return poptorch.identity_loss(computed, "none") if marked else computed

    executor = poptorch.trainingModel(Model(loss))
    if marked:
        assert executor(torch.rand(2, 8)) > 0
    else:
        with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph!"):
            executor(torch.rand(2, 8))


def test_truncated_normal_draws_are_refused_as_in_torch_2_0():
    with pytest.raises(poptorch.Error, match=r"Unsupported ops found in compiled model: \[aten::erfinv_\]"):
        infer(lambda x: nn.init.trunc_normal_(x.clone()))

"""Runs a function as a model on a simulated IPU, for the tests of PopTorch's operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vit_ipu import simulator as poptorch

X = torch.tensor([1.0, 2.0])


class Calls(nn.Module):
    """A model whose forward is a function; in training, the first input is multiplied by a weight of one."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        if not self.training:
            return self.function(*inputs)
        out = self.function(inputs[0] * self.weight, *inputs[1:])
        return out, poptorch.identity_loss(out, "sum")


def infer(function, *inputs):
    return poptorch.inferenceModel(Calls(function).eval())(*inputs)


def train(function, *inputs):
    model = Calls(function).train()
    return poptorch.trainingModel(model)(*inputs)[0], model.weight


def message_of(raised, function, *inputs):
    with pytest.raises(raised) as caught:
        infer(function, *inputs)
    return str(caught.value)

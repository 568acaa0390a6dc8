"""Trains two linear layers with something between them, for the tests of autograd's functions and hooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from simulated import data, options
from torch import nn

from vit_ipu import simulator as poptorch


class Model(nn.Module):
    """Two linear layers with `middle(first, x)` before the second."""

    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.middle = middle

    def forward(self, x, labels):
        return F.cross_entropy(self.second(self.middle(self.first, x)), labels)


def trained(middle):
    """Returns the weights after three updates, and IPU 0's part of the simulation report."""
    model = Model(middle)
    executor = poptorch.trainingModel(model, options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
    for _ in range(3):
        executor(*data(8))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, executor.simulation_report().ipus[0]


def assert_equal(weights, expected):
    """Micro-batches of a model without autograd.Functions and hooks pass together, which adds in another order."""
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-7)

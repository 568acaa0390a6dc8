"""A small model with a parameter and a buffer, for tests of executors."""

from __future__ import annotations

import torch
from torch import nn

from vit_ipu import simulator as poptorch


class Scale(nn.Module):
    """Multiplies the input by a parameter and adds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, x):
        out = x * self.factor + self.offset
        if not self.training:
            return out
        return out, poptorch.identity_loss(out**2, reduction="mean")

"""Models as users write them. The comment `# here: NAME` marks the line that a finding about the model must name."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def marked_line(name: str) -> int:
    """Returns the number of the line of this file that ends in `# here: NAME`."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.endswith(f"# here: {name}"))


class Masking(nn.Module):
    """Drops patches by a mask, whose number of patches is not known before it runs."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x.mean(-1)
        kept = x[scores > 0.5]  # here: mask
        return kept.mean(0)


class MaskedMaximum(nn.Module):
    """Continues with the selected values, of which there must be at least one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_select(x > 0.5).max(0).values.erfinv()  # here: maximum


class EarlyExit(nn.Module):
    """Stops after the first layer if that one is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.softmax(-1).max() > 0.9:  # here: branch
            return x
        return self.second(x)


class Repeated(nn.Module):
    """Three blocks that share a line of code."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Interpolating() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Interpolating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, x + 1, 0.5)  # here: lerp


class WithTable(nn.Module):
    """Holds a table as a plain attribute rather than as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.tensor([1, 0])

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.table)  # here: host


class Counting(nn.Module):
    """Reassigns two buffers, and counts its calls in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x.sum()
        self.calls = self.calls + 1
        self.count += 1
        return x * 2


class ManyMistakes(nn.Module):
    """Seven refused operations, each at a line of its own, and ones between them that PopTorch takes."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = torch.erfinv(x.clamp(-0.9, 0.9))  # here: 1
        scale = float(x.max())  # here: 2
        x = x * scale
        values = x.cpu().sum()  # here: 3
        positions = x.nonzero()  # here: 4
        x = F.interpolate(x[:, None, None], size=(3, 20), mode="bilinear")  # here: 5
        x = x.flatten(1).repeat_interleave(2, 1)  # here: 6
        loss = F.cross_entropy(x, labels, label_smoothing=0.1)  # here: 7
        return loss + values.to(x.device) + positions.sum()


class Endless(nn.Module):
    """Loops until a value is small, which no trace can know."""

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 1:  # here: loop
            x = x * 0.5
        return x.erfinv()


class Broken(nn.Module):
    """Has a layer of the wrong width."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # here: broken


class BrokenAfterwards(nn.Module):
    """Needs the number of elements above a threshold, and fails with any number that is made up."""

    def forward(self, x: Tensor) -> Tensor:
        count = x[x > 0.5].shape[0]  # here: count
        return x.reshape(3, -1)[:count] @ x.reshape(2, -1)[:count]  # here: afterwards

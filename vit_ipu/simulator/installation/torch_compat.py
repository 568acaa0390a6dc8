"""What newer versions of torch took away and programs for PopTorch, which are written for torch 2.0.1, still call."""

from __future__ import annotations

from typing import Any

import torch.utils.data


def restore_removed() -> None:
    """Gives back what this torch lacks: the argument of torch.utils.data.Sampler's constructor, which had no effect."""
    if "__init__" not in vars(torch.utils.data.Sampler):
        torch.utils.data.Sampler.__init__ = _sampler_init  # type: ignore[method-assign]


def _sampler_init(self: Any, data_source: Any = None) -> None:
    """As in torch 2.0.1, where subclasses call it with their data."""

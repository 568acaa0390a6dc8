"""Features that newer versions of torch removed and that programs for PopTorch, written for torch 2.0.1, still use."""

from __future__ import annotations

from typing import Any

import torch.utils.data


def restore_removed() -> None:
    """Restores the argument of torch.utils.data.Sampler's constructor, which had no effect, if this torch lacks it."""
    if "__init__" not in vars(torch.utils.data.Sampler):
        torch.utils.data.Sampler.__init__ = _sampler_init  # type: ignore[method-assign]


def _sampler_init(self: Any, data_source: Any = None) -> None:
    """Ignores the data that subclasses pass, as in torch 2.0.1."""

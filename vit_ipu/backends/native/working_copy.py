"""The bfloat16 copy of the weights that training computes with, beside the float32 masters that the optimizer updates.

bfloat16 has 8 bits of precision: weights kept in it alone would lose most updates.
"""

from __future__ import annotations

import copy
from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from vit_ipu.model import ViT


class WorkingCopy:
    """A bfloat16 copy of a model, and the transfers between the two."""

    def __init__(self, masters: ViT) -> None:
        self.model: ViT = copy.deepcopy(masters).to(torch.bfloat16)
        self.model.register_forward_pre_hook(_to_bfloat16)
        self._masters: List[Tensor] = list(masters.parameters())
        self._copies: List[Tensor] = list(self.model.parameters())

    @property
    def gradients(self) -> List[Tensor]:
        """The gradients of the copy, in the order of the masters."""
        return [parameter.grad for parameter in self._copies if parameter.grad is not None]

    @torch.no_grad()
    def add_gradients(self, gradients: List[Tensor]) -> None:
        """Adds the gradients of the copy to those of the masters, in float32."""
        if self._masters[0].grad is None:
            for master in self._masters:
                master.grad = torch.empty_like(master)
            _copy(self._master_gradients, gradients)
        else:
            torch._foreach_add_(self._master_gradients, gradients)

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Moves the gradients of the masters, if there are some, to the copy, whose next pass adds to them."""
        for master, parameter in zip(self._masters, self._copies):
            parameter.grad = None if master.grad is None else master.grad.to(parameter.dtype)
            master.grad = None

    def drop_gradients(self) -> None:
        """Frees the gradients of the copy."""
        for parameter in self._copies:
            parameter.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the masters to the copy, after a change of theirs."""
        _copy(self._copies, self._masters)

    @property
    def _master_gradients(self) -> List[Tensor]:
        return [master.grad for master in self._masters if master.grad is not None]


def _to_bfloat16(_: nn.Module, inputs: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Rounds normalised images, which are float32."""
    return (inputs[0].to(torch.bfloat16),)


def _copy(targets: List[Tensor], sources: Sequence[Tensor]) -> None:
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(targets, list(sources))
    else:  # before torch 2.1
        for target, source in zip(targets, sources):
            target.copy_(source)

"""The bfloat16 copy of the weights that training computes with, beside the float32 masters that the optimizer updates.

bfloat16 has 8 bits of precision: weights kept in it alone would lose most updates.
"""

from __future__ import annotations

import copy
from typing import Any, List, Optional, Sequence, Tuple

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
        self.trained: List[Tensor] = [master for master in self._masters if master.requires_grad]
        """The masters that training changes."""
        self._memory: Optional[List[Tensor]] = None

    @property
    def gradients(self) -> List[Tensor]:
        """The gradients of the copy, in the order of the masters."""
        return [parameter.grad for parameter in self._copies if parameter.grad is not None]

    def keep_gradients_in(self, memory: List[Tensor]) -> None:
        """Makes the gradients of the masters that training changes lie in the given tensors."""
        self._memory = memory

    @torch.no_grad()
    def add_gradients(self, gradients: List[Tensor]) -> None:
        """Adds the gradients of the copy to those of the masters, in float32."""
        if self.trained[0].grad is None:
            memory = self._memory or [torch.empty_like(master) for master in self.trained]
            for master, gradient in zip(self.trained, memory):
                master.grad = gradient
            _copy(self._master_gradients, gradients)
        else:
            torch._foreach_add_(self._master_gradients, gradients)

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

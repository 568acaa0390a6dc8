"""Annotations on a model written for one device: where pipeline stages begin, and what is not recomputed."""

from __future__ import annotations

from typing import Any, Optional

import poptorch
from torch import Tensor, nn

from vit_ipu.config import Config
from vit_ipu.model import ViT
from vit_ipu.pipeline import first_module, place_units
from vit_ipu.step import TrainingStep


def begin_stages(model: ViT, config: Config) -> None:
    """Marks the first module on each IPU as the beginning of a block on that IPU."""
    modules = dict(model.named_modules())
    for ipu, units in enumerate(place_units(config.layers_per_ipu)):
        poptorch.BeginBlock(modules[first_module(units[0])], user_id=f"ipu{ipu}", ipu_id=ipu)


def keep_block_outputs(model: ViT) -> None:
    """Keeps each transformer block's output for the backward pass; the inside of the block is computed again."""
    for block in model.blocks:
        block.register_forward_hook(_keep)


def _keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return poptorch.recomputationCheckpoint(output)


class IpuTrainingStep(TrainingStep):
    """The training step of a micro-batch, whose loss PopTorch differentiates."""

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        return poptorch.identity_loss(super().forward(images, labels, mixing), reduction="none")

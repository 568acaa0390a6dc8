"""Annotations on a model written for one device: where pipeline stages begin, and what is not recomputed."""

from __future__ import annotations

from typing import Any, Optional, Sequence

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


def keep_middles(model: ViT, layers: Sequence[int]) -> None:
    """Keeps the activation between attention and MLP of the given blocks for the backward pass."""
    for layer in layers:
        model.blocks[layer].middle.register_forward_hook(_keep)  # type: ignore[union-attr, operator]


def _keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return poptorch.recomputationCheckpoint(output)


class IpuTrainingStep(TrainingStep):
    """The training step of a micro-batch, whose loss PopTorch differentiates."""

    def __init__(self, model: ViT, config: Config, class_weights: Optional[Sequence[float]] = None) -> None:
        super().__init__(model, config, class_weights)
        self._overlap = _overlap_mode(config)

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        if self._overlap is not None:
            images, labels = poptorch.set_overlap_for_input((images, labels), self._overlap)
            mixing = None if mixing is None else poptorch.set_overlap_for_input(mixing, self._overlap)
        loss = poptorch.identity_loss(super().forward(images, labels, mixing), reduction="none")
        return loss if self._overlap is None else poptorch.set_overlap_for_output(loss, self._overlap)


def _overlap_mode(config: Config) -> Optional[poptorch.OverlapMode]:
    name = config.pipeline.overlap_io
    return None if name == "none" else poptorch.OverlapMode(f"overlap_{name}")

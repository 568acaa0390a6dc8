"""Annotations on a model written for one device: where pipeline stages begin, and what is not recomputed."""

from __future__ import annotations

from typing import Any, Optional

import poptorch
from torch import Tensor, nn

from vit_ipu.config import Config
from vit_ipu.data.images.transforms import Normalize
from vit_ipu.losses import classification_loss
from vit_ipu.mixing import Mixer
from vit_ipu.model import ViT
from vit_ipu.pipeline import first_module, place_units


def begin_stages(model: ViT, config: Config) -> None:
    """Marks the first module on each IPU as the begin of a block there."""
    modules = dict(model.named_modules())
    for ipu, units in enumerate(place_units(config.layers_per_ipu)):
        poptorch.BeginBlock(modules[first_module(units[0])], user_id=f"ipu{ipu}", ipu_id=ipu)


def keep_block_outputs(model: ViT) -> None:
    """Each transformer block's output is kept for the backward pass, and what is inside is computed again."""
    for block in model.blocks:
        block.register_forward_hook(_keep)


def _keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return poptorch.recomputationCheckpoint(output)


class TrainingStep(nn.Module):
    """Images (m, 3, S, S), labels (m,) and, if the config mixes, mixing (1, 6) of a micro-batch to its mean loss."""

    def __init__(self, model: ViT, config: Config) -> None:
        super().__init__()
        self.normalize = Normalize(config.data)
        self.mixer = Mixer(config.model.image_size) if config.data.mixes else None
        self.model = model
        self.label_smoothing = config.optim.label_smoothing

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        images = self.normalize(images)
        logits = self.model(images if self.mixer is None else self.mixer(images, mixing))
        loss = classification_loss(logits, labels, self.label_smoothing, mixing)
        return poptorch.identity_loss(loss, reduction="none")


class InferenceStep(nn.Module):
    """Images (m, 3, S, S) of a micro-batch to logits (m, K) in float32."""

    def __init__(self, model: ViT, config: Config) -> None:
        super().__init__()
        self.normalize = Normalize(config.data)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalize(images)).float()

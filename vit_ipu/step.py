"""Training step and inference step, shared by all backends: normalise, mix, model, loss.

Shapes: n samples, S image side, K classes, M micro-batches of the config.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from vit_ipu.config import Config, DataConfig
from vit_ipu.losses import TrainingLoss
from vit_ipu.mixing import Mixer
from vit_ipu.model import ViT


class TrainingStep(nn.Module):
    """Training step: images (n, 3, S, S), labels (n,) and, if the config mixes, mixing (M, 6) to mean loss in nats.

    `class_weights` (K,) are those of the loss, if optim.class_weights is set; only a step that trains needs them.
    """

    def __init__(self, model: ViT, config: Config, class_weights: Optional[Sequence[float]] = None) -> None:
        super().__init__()
        self.normalize = Normalize(config.data)
        self.mixer = Mixer(config.model.image_size) if config.data.mixes else None
        self.model = model
        self.loss = TrainingLoss(config, class_weights)

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        images = self.normalize(images)
        logits = self.model(images if self.mixer is None else self.mixer(images, mixing))  # (n, K)
        loss: Tensor = self.loss(logits, labels, mixing)
        return loss


class InferenceStep(nn.Module):
    """Inference step: images (n, 3, S, S) to logits (n, K) in float32."""

    def __init__(self, model: ViT, config: Config) -> None:
        super().__init__()
        self.normalize = Normalize(config.data)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.normalize(images)).float()


class Normalize(nn.Module):
    """Normalises images (n, 3, S, S) on the device: bytes to (pixel / 255 - mean) / std in the buffers' dtype.

    Images that are transferred as floats have been normalised on the host; only their dtype changes here.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.from_bytes = config.transfer == "uint8"
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (config.mean, config.std))
        # One multiply and one add, with factors that are computed in float64 and then rounded once.
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.scale.dtype)
        return images * self.scale + self.shift if self.from_bytes else images

"""Training and inference by timm, transformers and torchvision, as their users run them fastest.

On a GPU: bfloat16 autocast for training, bfloat16 weights for inference, torch.compile, fused optimizers. On a CPU:
float32, not compiled. Inputs are normalised images on the device.
"""

from __future__ import annotations

from typing import Callable

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from vit_ipu.config import Config, ModelConfig

PEERS = ("timm", "transformers", "torchvision")
Work = Callable[[], object]


def build_model(peer: str, model: ModelConfig) -> nn.Module:
    """Returns the peer's model of the config's shape, with GELU's erf form as the peers have it."""
    if peer == "timm":
        return timm.create_model(f"{model.variant}_224", img_size=model.image_size, num_classes=model.num_classes)
    if peer == "torchvision":
        return VisionTransformer(
            model.image_size, model.patch_size, model.depth, model.num_heads, model.width, model.mlp_width,
            num_classes=model.num_classes,
        )  # fmt: skip
    config = transformers.ViTConfig(
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.num_heads,
        intermediate_size=model.mlp_width,
        image_size=model.image_size,
        patch_size=model.patch_size,
        num_labels=model.num_classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _Logits(transformers.ViTForImageClassification(config))


class _Logits(nn.Module):
    """A model of transformers that returns its logits only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits  # type: ignore[no-any-return]


def training(peer: str, config: Config, images: Tensor, labels: Tensor, optimizer: str) -> Work:
    """Returns a function that makes one update on normalised images (B, 3, S, S) and labels (B,)."""
    model = build_model(peer, config.model).to(images.device).train()
    fused = {"fused": True} if images.is_cuda else {}
    made: torch.optim.Optimizer
    if optimizer == "sgd":
        made = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, **fused)
    else:
        made = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, **fused)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss_of, dynamic=False) if images.is_cuda else loss_of

    def update() -> None:
        compiled(images, labels).backward()
        made.step()
        made.zero_grad(set_to_none=True)

    return update


def inference(peer: str, config: Config, images: Tensor) -> Work:
    """Returns a function that computes the logits of normalised images (B, 3, S, S)."""
    model = build_model(peer, config.model).to(images.device).eval()
    if images.is_cuda:
        model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    compiled = torch.compile(model, dynamic=False) if images.is_cuda else model

    def predict() -> Tensor:
        with torch.inference_mode():
            return compiled(images).float()

    return predict

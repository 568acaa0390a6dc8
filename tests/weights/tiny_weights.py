"""Random weights of a tiny ViT under this program's names, for the tests of weights."""

from __future__ import annotations

from typing import Dict

import numpy as np
import torch
from foreign import randomise
from PIL import Image
from torch import Tensor

from vit_ipu.config import ModelConfig
from vit_ipu.model import ViT

TINY = ModelConfig(variant="vit_test", image_size=28, num_classes=5)
WITH_LAYER = ModelConfig(variant="vit_test", image_size=28, num_classes=5, representation_size=48)


def state_of(config: ModelConfig, seed: int = 0) -> Dict[str, Tensor]:
    """Returns random weights of the model of a config."""
    torch.manual_seed(seed)
    return randomise(ViT(config)).state_dict()


def tiny_state(seed: int = 0) -> Dict[str, Tensor]:
    return state_of(TINY, seed)


def optimizer_of(model):
    """Returns an AdamW that has made a step, so that it has a state."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def quiet(text):
    """Discards a note, for tests that do not read notes."""


def noise(height: int, width: int) -> Image.Image:
    """Returns a picture of the same random pixels each time."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))

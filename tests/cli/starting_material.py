"""What `init` starts from in tests: the classes of the pictures, and weights in a file without a description."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from vit_ipu.config import ModelConfig
from vit_ipu.model import ViT

CLASSES = ("cat", "dog", "owl")


def write_weights(path: Path, **shape) -> None:
    """Writes random weights by timm's names, of a shape whose heads are known, in a file without a description."""
    model = ModelConfig(**{"variant": "vit_tiny_patch16", "depth": 12, "image_size": 32, "num_classes": 7, **shape})
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in ViT(model).state_dict().items()}, str(path))

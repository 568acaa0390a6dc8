"""Position embeddings that are resized for another number of pixels, as in the library that the weights come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vit_ipu.weights.position_embeddings import resize_pos_embed


@pytest.mark.parametrize(("old", "new"), [(4, 7), (14, 24), (7, 3), (5, 5)])
def test_position_embeddings_are_resized_as_in_their_library(old, new):
    torch.manual_seed(0)
    positions = torch.randn(1, 1 + old * old, 8)
    expected = {
        "timm": by_timm(positions, new),
        "huggingface": by_interpolation(positions, new, align_corners=False),
        "mmpretrain": by_interpolation(positions, new, align_corners=False),
        "torchvision": by_torchvision(positions, new),
        "google": by_zoom(positions, new),
    }
    for rule, wanted in expected.items():
        bound = 1e-5 if rule == "google" else 1e-6  # the reference for zoom computes in float64
        torch.testing.assert_close(resize_pos_embed(positions, new * new, rule), wanted, rtol=0, atol=bound)


def by_timm(positions, new):
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(positions, [new, new])


def by_torchvision(positions, new):
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = interpolate_embeddings(new * 16, 16, {"encoder.pos_embedding": positions})
    return state["encoder.pos_embedding"]


def by_interpolation(positions, new, *, align_corners):
    """Resizes as mmclassification's resize_pos_embed and transformers' interpolate_pos_encoding do, written out."""
    old = math.isqrt(positions.shape[1] - 1)
    if old == new:
        return positions
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=align_corners)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def by_zoom(positions, new):
    """Resizes as google's checkpoint.py does with scipy.ndimage.zoom(order=1): corners stay, linear between them."""
    old = math.isqrt(positions.shape[1] - 1)
    grid = positions[0, 1:].reshape(old, old, -1).numpy().astype(np.float64)
    at = np.linspace(0, old - 1, new)
    for axis in (0, 1):
        low = np.minimum(np.floor(at).astype(int), old - 2)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        grid = np.take(grid, low, axis) * (1 - weight) + np.take(grid, low + 1, axis) * weight
    return torch.cat([positions[:, :1], torch.tensor(grid, dtype=torch.float32).reshape(1, new * new, -1)], dim=1)

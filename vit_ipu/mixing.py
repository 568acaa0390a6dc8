"""Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899): each sample is mixed with its partner, the sample before it.

The host makes the random draws, so that runs can be repeated; the device mixes normalised images, each within its
micro-batch of the config. Shapes: B samples, M micro-batches, S image side. A mixing tensor (M, 6), float32, has a row
for each micro-batch: the share of a sample's own label, the share of its own pixels inside a box (outside the box, all
pixels are its own), and the box's left, top, right and bottom in pixels. Mixup's box is the complete image; cutmix
keeps none of a sample's own pixels inside its box.
"""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn

from vit_ipu.config import Config, DataConfig


class Mixer(nn.Module):
    """Mixes images (B, 3, S, S) by a mixing tensor (M, 6), in the images' dtype."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.places: Tensor
        self.register_buffer("places", torch.arange(image_size, dtype=torch.int32), persistent=False)  # (S,)

    def forward(self, images: Tensor, mixing: Tensor) -> Tensor:
        own = self.own_pixels(mixing).to(images.dtype).unsqueeze(2)  # (M, 1, 1, S, S)
        groups = images.reshape(len(mixing), -1, *images.shape[1:])  # (M, B / M, 3, S, S)
        return (own * groups + (1 - own) * _partners(groups)).reshape(images.shape)

    def own_pixels(self, mixing: Tensor) -> Tensor:
        """Returns the share (M, 1, S, S) of a sample's own pixels at each place."""
        columns, rows = (self._between(mixing[:, low], mixing[:, low + 2]) for low in (2, 3))  # (M, S) each
        inside = (rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)  # (M, 1, S, S)
        return inside * mixing[:, 1].reshape(-1, 1, 1, 1) + (1 - inside)

    def _between(self, low: Tensor, high: Tensor) -> Tensor:
        """Returns (M, S): 1 at places from `low` to below `high` (M,), else 0."""
        places = self.places.to(low.dtype)
        return torch.logical_and(places >= low.unsqueeze(1), places < high.unsqueeze(1)).to(low.dtype)


def partner_labels(labels: Tensor, mixing: Tensor) -> Tensor:
    """Returns the labels (B,) of the partners of the samples that have `labels`."""
    return _partners(labels.reshape(len(mixing), -1)).reshape(-1)


def own_label_shares(labels: Tensor, mixing: Tensor) -> Tensor:
    """Returns the share (B,) of each sample's own label."""
    return mixing[:, :1].expand(-1, len(labels) // len(mixing)).reshape(-1)


def _partners(groups: Tensor) -> Tensor:
    """Returns each sample's partner in its micro-batch: groups (M, B / M, ...) rolled by one, as in graphcore's ViT."""
    return torch.roll(groups, 1, 1)


# ------------------------------------------------------------------------------------- the host's draws


def mixing_of_step(config: Config, step: int, positions: np.ndarray) -> Optional[Tensor]:
    """Returns the mixing tensor of host step `step` for the samples at `positions` (BatchPlan.share), or None.

    The result is None if the config does not mix. The draws depend only on the seed, the update and the micro-batch's
    number in the update, not on the process that feeds the micro-batch.
    """
    if not config.data.mixes:
        return None
    iterations, size = config.pipeline.device_iterations, config.pipeline.micro_batch_size
    draws = np.concatenate([draws_of_update(config, step * iterations + i) for i in range(iterations)])
    return torch.from_numpy(draws[positions[::size] // size])


def draws_of_update(config: Config, update: int) -> np.ndarray:
    """Returns the rows (M, 6) of all micro-batches of update `update`, counted from 0."""
    data, side = config.data, config.model.image_size
    num_micro_batches = config.pipeline.global_batch_size // config.pipeline.micro_batch_size
    count = num_micro_batches if data.mixing_draw == "micro_batch" else 1
    # With a spawn key these draws differ from the draws of the order and the augmentation, which use the same seed.
    rng = np.random.default_rng(np.random.SeedSequence(config.run.seed, spawn_key=(update,)))
    is_mixed = rng.random(count) < data.mixing_probability
    is_cut = rng.random(count) < _cutmix_share(data)
    own_shares = np.where(is_cut, _beta(data.cutmix_alpha, rng, count), _beta(data.mixup_alpha, rng, count))
    boxes = np.where(is_cut[:, None], cutmix_boxes(own_shares, side, rng), [0, 0, side, side])
    own_inside = np.where(is_mixed, np.where(is_cut, 0, own_shares), 1)
    left, top, right, bottom = boxes.T
    own_label = 1 - (1 - own_inside) * (right - left) * (bottom - top) / side**2
    rows = np.column_stack([own_label, own_inside, boxes]).astype(np.float32)
    return np.repeat(rows, num_micro_batches // count, axis=0)


def cutmix_boxes(own_shares: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Returns boxes (n, 4), left, top, right, bottom, of area 1 - own_shares around uniform centres.

    The source is algorithm A1 of the cutmix paper. Boxes are clipped to the image, which makes some of them smaller, so
    labels are weighted by the area after clipping.
    """
    half = (side * np.sqrt(1 - own_shares)).astype(np.int64)[:, None] // 2
    centres = rng.integers(side, size=(len(own_shares), 2))
    return np.concatenate([np.clip(centres - half, 0, side), np.clip(centres + half, 0, side)], axis=1)


def _beta(alpha: float, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns `count` draws of Beta(alpha, alpha); if alpha is 0, the caller does not use the draws."""
    return rng.beta(alpha or 1.0, alpha or 1.0, count)


def _cutmix_share(data: DataConfig) -> float:
    if data.mixup_alpha > 0 and data.cutmix_alpha > 0:
        return data.cutmix_share
    return 1.0 if data.cutmix_alpha > 0 else 0.0

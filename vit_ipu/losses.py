"""Classification losses, in operations that PopTorch supports. Shapes: B samples, K classes, M micro-batches."""

from __future__ import annotations

import math
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ipu.config import Config
from vit_ipu.mixing import own_label_shares, partner_labels


class TrainingLoss(nn.Module):
    """The loss of a config: logits (B, K), labels (B,) and, if the config mixes, mixing (M, 6) to the mean loss.

    `class_weights` (K,) are those of `class_balance.class_weights`. A config that has class weights is built without
    them where nothing is trained or where only shapes matter; its loss is then NaN.
    """

    def __init__(self, config: Config, class_weights: Optional[Sequence[float]] = None) -> None:
        super().__init__()
        self.optim = config.optim
        weights = class_weights
        if weights is None and config.optim.class_weights is not None:
            weights = [math.nan] * config.model.num_classes
        self.class_weights: Optional[Tensor]
        # A buffer, because PopTorch takes no constant of the host; float32 also beside a model in float16.
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", tensor, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tensor:
        smoothing = self.optim.label_smoothing
        if self.optim.loss == "bce":
            return binary_loss(logits, labels, smoothing, mixing, threshold=self.optim.bce_target_threshold)
        return classification_loss(logits, labels, smoothing, mixing, class_weights=self.class_weights)


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    mixing: Optional[Tensor] = None,
    *,
    class_weights: Optional[Tensor] = None,
) -> Tensor:
    """Returns the mean cross-entropy of logits (B, K) and labels (B,), in nats, computed in float32 or wider.

    Smoothing spreads `label_smoothing` of the target evenly over the K classes (arXiv:1512.00567, section 7).
    With `mixing` (M, 6), a target is a sample's own label and its partner's label, weighted by their shares. Smoothing
    and mixing are written out as weighted sums of losses: PopTorch rejects `F.cross_entropy(label_smoothing=...)` and
    `F.cross_entropy(weight=...)`, and the loss is linear in the targets.

    `class_weights` (K,) are factors on each class's part of the targets, as in torch. The sum over the samples is
    divided by B, as torch divides it for targets that are probabilities. For labels torch divides by the sum of their
    weights instead; then the gradient of a batch would not be the mean of those of its micro-batches.
    """
    logits = _wide(logits)
    if label_smoothing == 0 and mixing is None and class_weights is None:
        return F.cross_entropy(logits, labels)
    log_probabilities = F.log_softmax(logits, dim=-1)
    if class_weights is not None:
        log_probabilities = log_probabilities * class_weights
    loss = _negative_log_likelihood(log_probabilities, labels)  # (B,)
    if mixing is not None:
        own = own_label_shares(labels, mixing)
        loss = own * loss + (1 - own) * _negative_log_likelihood(log_probabilities, partner_labels(labels, mixing))
    if label_smoothing > 0:
        even = -log_probabilities.mean(dim=1)  # (B,)
        loss = (1 - label_smoothing) * loss + label_smoothing * even
    return loss.mean()


def binary_loss(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    mixing: Optional[Tensor] = None,
    *,
    threshold: Optional[float] = None,
) -> Tensor:
    """Returns the binary cross-entropy of logits (B, K) and labels (B,), in nats: its mean over samples and classes.

    The targets are those of the cross-entropy, mixed and smoothed. With `threshold`, targets above it become 1 and the
    others 0. The source is timm's BinaryCrossEntropy (timm/loss/binary_cross_entropy.py, arXiv:2110.00476) with its
    default reduction. It is computed in float32 or wider by the operation of torch, which PopTorch writes out so that
    no exponential overflows (popart_canonicalization/LossOps.cpp, bceWithLogitsHandler).
    """
    logits = _wide(logits)
    targets = binary_targets(labels, logits, label_smoothing, mixing)
    if threshold is not None:
        targets = (targets > threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)


def binary_targets(labels: Tensor, logits: Tensor, label_smoothing: float, mixing: Optional[Tensor]) -> Tensor:
    """Returns the mixed and smoothed targets (B, K) of labels (B,), in the format of the logits (B, K)."""
    targets = _one_hot(labels, logits)
    if mixing is not None:
        own = own_label_shares(labels, mixing).unsqueeze(1)
        targets = own * targets + (1 - own) * _one_hot(partner_labels(labels, mixing), logits)
    return targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Returns (B, K) in the format of the logits. F.one_hot of torch 2.0 checks labels: that breaks compiled graphs."""
    return torch.zeros_like(logits).scatter(1, labels.long().unsqueeze(1), 1.0)


def loss_of_guess(config: Config, class_weights: Optional[Sequence[float]] = None) -> float:
    """Returns the mean loss in nats of logits that are all equal; with class weights, that of the heaviest class."""
    if config.optim.loss == "bce":
        return math.log(2)
    return math.log(max(config.model.num_classes, 2)) * max([1.0, *(class_weights or ())])


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return -log_probabilities.gather(1, labels.long().unsqueeze(1)).squeeze(1)

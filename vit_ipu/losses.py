"""Classification loss, in operations that PopTorch supports. Shapes: B samples, K classes, M micro-batches."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ipu.mixing import own_label_shares, partner_labels


def classification_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, mixing: Optional[Tensor] = None
) -> Tensor:
    """Returns the mean cross-entropy of logits (B, K) and labels (B,), in nats, computed in float32 or wider.

    Smoothing spreads `label_smoothing` of the target evenly over the K classes (arXiv:1512.00567, section 7).
    With `mixing` (M, 6), a target is a sample's own label and its partner's label, weighted by their shares. Smoothing
    and mixing are written out as weighted sums of losses: PopTorch rejects `F.cross_entropy(label_smoothing=...)`, and
    the loss is linear in the targets.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if label_smoothing == 0 and mixing is None:
        return F.cross_entropy(logits, labels)
    log_probabilities = F.log_softmax(logits, dim=-1)
    loss = _negative_log_likelihood(log_probabilities, labels)  # (B,)
    if mixing is not None:
        own = own_label_shares(labels, mixing)
        loss = own * loss + (1 - own) * _negative_log_likelihood(log_probabilities, partner_labels(labels, mixing))
    if label_smoothing > 0:
        even = -log_probabilities.mean(dim=1)  # (B,)
        loss = (1 - label_smoothing) * loss + label_smoothing * even
    return loss.mean()


def _negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return -log_probabilities.gather(1, labels.long().unsqueeze(1)).squeeze(1)

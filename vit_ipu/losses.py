"""The classification loss, in operations that PopTorch takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (B, K) and labels (B,), in nats, at least in float32.

    Smoothing spreads `label_smoothing` of the target evenly over the K classes (arXiv:1512.00567, section 7).
    It is written out because PopTorch rejects `F.cross_entropy(label_smoothing=...)`.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if label_smoothing == 0:
        return F.cross_entropy(logits, labels)
    log_probabilities = F.log_softmax(logits, dim=-1)
    hard = -log_probabilities.gather(1, labels.long().unsqueeze(1)).squeeze(1)  # (B,)
    even = -log_probabilities.mean(dim=1)  # (B,)
    return ((1 - label_smoothing) * hard + label_smoothing * even).mean()

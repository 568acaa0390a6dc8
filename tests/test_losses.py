"""The written-out loss equals torch's in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vit_ipu.losses import classification_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_equals_torchs_cross_entropy(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64)
    labels = torch.randint(5, (7,))
    gradients = []
    for loss in (lambda x: classification_loss(x, labels, smoothing), lambda x: _torch_loss(x, labels, smoothing)):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        gradients.append((value.detach(), x.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def _torch_loss(logits, labels, smoothing):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_precision_logits_give_a_float32_loss(smoothing):
    logits = torch.randn(4, 5)
    loss = classification_loss(logits.half(), torch.tensor([0, 1, 2, 3]), smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_torch_loss(logits, torch.tensor([0, 1, 2, 3]), smoothing).item(), rel=1e-2)

"""Scores of held-out images: what a model predicts for each, and what it confuses. K classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_CONFUSED = 2048
"""Classes up to which a confusion matrix is counted: it has 32 MiB then."""


@dataclass(frozen=True)
class Mistake:
    """A held-out image that the model takes for another class."""

    index: int
    """Place of the image in its source."""
    label: int
    predicted: int
    probability: float
    """Probability of the predicted class."""
    loss: float
    """Cross-entropy in nats, or binary cross-entropy."""


@dataclass(frozen=True)
class Scores:
    """Predictions for n held-out images, in any order."""

    indices: Tensor
    """Places of the images in their source, (n,) int64."""
    labels: Tensor
    """(n,) int64."""
    predicted: Tensor
    """Classes of the highest logits, (n,) int64."""
    probabilities: Tensor
    """Probabilities of the predicted classes, (n,) float64."""
    losses: Tensor
    """Cross-entropies without smoothing in nats, or binary ones as means over the classes, (n,) float64."""
    in_top5: Tensor
    """Whether the class is among the five highest logits, or among all logits if there are fewer, (n,) bool."""
    num_classes: int

    @classmethod
    def of(cls, indices: Tensor, logits: Tensor, labels: Tensor, *, loss: str = "cross_entropy") -> Scores:
        """Returns the scores of logits (n, K), images whose places are `indices`, and labels, both (n,).

        With the loss `bce`, probabilities are sigmoids and losses binary cross-entropies; else softmax and
        cross-entropies.
        """
        logits = logits.to(torch.float64)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (n, 5), whose first is the prediction
        if loss == "bce":
            probabilities, losses = logits.sigmoid(), _binary_losses(logits, labels)
        else:
            probabilities, losses = logits.softmax(dim=1), F.cross_entropy(logits, labels, reduction="none")
        probabilities, predicted = probabilities.gather(1, best[:, :1]).flatten(), best[:, 0]
        in_top5 = (best == labels[:, None]).any(dim=1)
        return cls(indices, labels.clone(), predicted, probabilities, losses, in_top5, logits.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Returns the scores of one or more parts as one."""
        names = ("indices", "labels", "predicted", "probabilities", "losses", "in_top5")
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**tensors, num_classes=parts[0].num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confusion(self) -> Optional[Tensor]:
        """Numbers of images (K, K) int64, by class along dim 0 and by predicted class along dim 1; None for many K."""
        if self.num_classes > MOST_CONFUSED:
            return None
        pairs = self.labels * self.num_classes + self.predicted
        return torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, -1)

    def worst(self, count: int) -> Tuple[Mistake, ...]:
        """Returns the mistakes with the highest losses, at most `count`, worst first."""
        wrong = (self.predicted != self.labels).nonzero().flatten()
        order = wrong[self.losses[wrong].argsort(descending=True, stable=True)[:count]]
        columns = (self.indices, self.labels, self.predicted, self.probabilities, self.losses)
        return tuple(Mistake(*values) for values in zip(*(column[order].tolist() for column in columns)))


def _binary_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the binary cross-entropy of each image, as its mean over the classes, (n,)."""
    targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def per_class(confusion: Tensor) -> List[Tuple[int, int]]:
    """Returns the number of images, and that of correct predictions, of each class of a confusion matrix (K, K)."""
    return list(zip(confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()))


def most_confused(confusion: Tensor, count: int) -> List[Tuple[int, int, int]]:
    """Returns the class, the predicted class and the number of images of the most frequent confusions."""
    others = confusion.clone().fill_diagonal_(0)
    most = others.flatten().topk(min(count, others.numel()))
    size = len(confusion)
    pairs = zip(most.indices.tolist(), most.values.tolist())
    return [(place // size, place % size, number) for place, number in pairs if number]

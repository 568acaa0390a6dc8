"""Classes that have more images than others: their counts, and the weights of their losses. K classes."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import numpy as np

from vit_ipu.config import Config
from vit_ipu.errors import DataError
from vit_ipu.text import and_more, escaped


def count_images(labels: np.ndarray, classes: Sequence[str], *, wanted_by: str) -> np.ndarray:
    """Returns the number of training images (K,) of each class, from their labels (n,) alone.

    Raises DataError, which names the setting `wanted_by`, if a class has none.
    """
    counts = np.bincount(labels, minlength=len(classes))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raise DataError(
            f"{wanted_by}: there is no training image of the class {escaped(classes[int(empty[0])])}"
            f"{and_more(len(empty) - 1)}: add images, raise data.num_train if it is set, or remove the key"
        )
    return counts


def class_weights(config: Config, labels: np.ndarray, classes: Sequence[str]) -> Optional[Tuple[float, ...]]:
    """Returns the weights (K,) of the classes in the loss, or None if optim.class_weights is null.

    `balanced` is n / (K n_k), as scikit-learn's compute_class_weight. The mean of the weights over the drawn samples is
    made 1, so that the loss keeps its scale: torch's cross_entropy(weight=...) divides by the sum of the weights in a
    batch, whose mean this is, but which would make the gradient depend on how a batch is split into micro-batches.
    """
    chosen, present = config.optim.class_weights, np.bincount(labels, minlength=len(classes))
    if chosen is None:
        return None
    if chosen == "balanced":
        weights = 1 / count_images(labels, classes, wanted_by="optim.class_weights: balanced")
    else:
        weights = np.array(chosen)
    draws = present if config.data.sampling == "shuffled" else np.ones(len(classes))
    return tuple((weights * draws.sum() / (weights * draws).sum()).tolist())

"""Loss functions of torch: which calls PopTorch takes for the loss of a training model."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOSS_FUNCTIONS: Set[Callable[..., Any]] = {
    getattr(F, name)
    for name in (
        "binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss "
        "hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss "
        "multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss "
        "soft_margin_loss triplet_margin_loss"
    ).split()
}


def makes_loss(function: Callable[..., Any], args: Sequence[Any], kwargs: Dict[str, Any]) -> bool:
    """Tells whether PopTorch takes the result of a call for a loss.

    torch writes the cross-entropy of class probabilities out as sums and products, in which PopTorch finds no loss.
    """
    if function is F.cross_entropy:
        target = kwargs["target"] if "target" in kwargs else args[1]
        return not target.is_floating_point()
    return function in LOSS_FUNCTIONS


class LossCatcher(TorchFunctionMode):
    """Collects the losses that loss functions of torch return."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: List[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if makes_loss(func, args, kwargs or {}):
            self.losses.append(result)
        return result

"""torch.equal in a forward pass: a Python bool, which on an IPU is fixed while the model is traced.

PopTorch answers False for tensors on the IPU, whatever their values, and drops the comparison
(RegisterMetaOps.cpp.inc:77, LowerToPopartFactories.cpp:37).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten

_EQUAL = (torch.equal, Tensor.equal)


class Comparisons(TorchFunctionMode):
    """Answers torch.equal while a model is traced, and gives the same answers in the same order when the model runs."""

    def __init__(self, traced: Sequence[bool] = ()) -> None:
        """`traced`: the answers to give; without any, the mode finds them."""
        super().__init__()
        self.answers: List[bool] = []
        self._traced = iter(traced)
        self._has_warned = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if func not in _EQUAL:
            return func(*args, **(kwargs or {}))
        answer = next(self._traced, None)
        if answer is None:
            answer = self._answer(func, args, kwargs or {})
            self.answers.append(answer)
        return answer

    def _answer(self, func: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
        if not any(tensor.is_meta for tensor in flatten((args, kwargs))):
            return bool(func(*args, **kwargs))
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "torch.equal of tensors on an IPU is always False, whatever their values; compare on the IPU with "
                "(x == y).all(), or on the host before the model is called"
            )
        return False

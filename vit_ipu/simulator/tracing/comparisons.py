"""torch.equal in a forward pass: a Python bool, which on an IPU is fixed while the model is traced.

PopTorch answers False for tensors on the IPU, whatever their values, and drops the comparison
(RegisterMetaOps.cpp.inc:77, LowerToPopartFactories.cpp:37). Tensors on the host are compared.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vit_ipu.simulator.context import Body
from vit_ipu.simulator.logs import logger
from vit_ipu.simulator.nested import flatten

_EQUAL = (torch.equal, Tensor.equal)

Answers = List[Any]
"""Answers of torch.equal in order; a list stands for a body of poptorch.for_loop or poptorch.cond."""


class Comparisons(TorchFunctionMode):
    """Answers torch.equal while a model is traced, and gives the same answers in the same places when the model runs.

    A body of a loop is traced once and runs any number of times, and a body of a condition is traced and may not run.
    """

    def __init__(self, traced: Optional[Answers] = None) -> None:
        """`traced`: the answers to give; None finds the answers."""
        super().__init__()
        self.used = False
        """Whether the model calls torch.equal."""
        self.answers: Answers = [] if traced is None else traced
        self._is_tracing = traced is None
        self._inside, self._position = self.answers, 0
        self._has_warned = False

    def next_body(self) -> Body:
        """Returns the context in which the next body of a loop or of a condition runs."""
        answers = self._next(list)
        return partial(self._run_of, [] if answers is None else answers)

    @contextmanager
    def _run_of(self, answers: Answers) -> Iterator[None]:
        outside = self._inside, self._position
        self._inside, self._position = answers, 0
        try:
            yield
        finally:
            self._inside, self._position = outside

    def _next(self, find: Callable[[], Any]) -> Any:
        """Returns what `find` returns while the model is traced, and the same when the model runs.

        Returns None if the running model gets here and the traced model did not.
        """
        if self._is_tracing:
            self._inside.append(find())
        self._position += 1
        return self._inside[self._position - 1] if self._position <= len(self._inside) else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if func not in _EQUAL:
            return func(*args, **(kwargs or {}))
        self.used = True
        answer = self._next(lambda: self._answer(func, args, kwargs or {}))
        return bool(func(*args, **(kwargs or {}))) if answer is None else answer

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

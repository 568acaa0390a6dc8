"""The numerics of the simulated IPUs: exact, or an IPU's float16.

"exact" computes float16 in float32 and rounds what leaves the IPU; "ipu" rounds every float16 tensor (half_mode.py).
The choice applies to executors that are compiled afterwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

MODES = ("exact", "ipu")


class Numerics(NamedTuple):
    """The mode, and after how many products a float16 partial sum is rounded.

    16 is the number of float16 products in one pass of the AMP unit: a chain of 4 with 4 elements loaded at a time
    (poplibs lib/poplin/codelets/asm/conv_partial_1x1_half_half.S, ConvVertexType.cpp:52).
    """

    mode: str = "exact"
    partials_chunk: int = 16

    @property
    def is_ipu(self) -> bool:
        return self.mode == "ipu"


_chosen = Numerics()


def chosen() -> Numerics:
    """Returns the numerics for an executor that is compiled now."""
    return _chosen


class numerics:
    """Chooses "exact" or "ipu" for executors compiled afterwards; as a context manager, until the end of its block.

    `partials_chunk`: the number of products after which a float16 partial sum is rounded; None keeps the number, which
    starts as 16. Raises ValueError if the mode is unknown or `partials_chunk` is less than 1.
    """

    def __init__(self, mode: str, *, partials_chunk: Optional[int] = None) -> None:
        if mode not in MODES:
            raise ValueError(f"Unknown numerics {mode!r}: choose one of {', '.join(MODES)}")
        if partials_chunk is not None and partials_chunk < 1:
            raise ValueError(f"partials_chunk is {partials_chunk}, but must be at least 1")
        self._before = _chosen
        _choose(Numerics(mode, partials_chunk or _chosen.partials_chunk))

    @staticmethod
    def current() -> str:
        """Returns the mode for executors that are compiled now."""
        return _chosen.mode

    def __enter__(self) -> numerics:
        return self

    def __exit__(self, *exception: Any) -> None:
        _choose(self._before)


def _choose(choice: Numerics) -> None:
    global _chosen
    _chosen = choice

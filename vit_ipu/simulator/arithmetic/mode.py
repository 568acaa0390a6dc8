"""How the simulated IPUs compute: exactly, or with an IPU's float16.

"exact" computes float16 in float32 and rounds what leaves the IPU; "ipu" rounds every float16 tensor (half_ops.py).
The choice holds for executors that are compiled afterwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MODES = ("exact", "ipu")


class Numerics(NamedTuple):
    """A choice: the mode, and after how many products a float16 partial is rounded.

    16 is what one pass of the AMP unit takes of float16: a chain of 4 with 4 elements loaded at a time (poplibs
    lib/poplin/codelets/asm/conv_partial_1x1_half_half.S, ConvVertexType.cpp:52).
    """

    mode: str = "exact"
    partials_chunk: int = 16

    @property
    def is_ipu(self) -> bool:
        return self.mode == "ipu"


_chosen = Numerics()


def chosen() -> Numerics:
    """What holds for an executor that is compiled now."""
    return _chosen


class numerics:
    """Chooses "exact" or "ipu" for executors compiled afterwards; as a context manager, until its end.

    `partials_chunk`: a float16 partial sum is rounded after so many products. Raises ValueError.
    """

    def __init__(self, mode: str, *, partials_chunk: int = 16) -> None:
        if mode not in MODES:
            raise ValueError("Unknown numerics {!r}: choose one of {}".format(mode, ", ".join(MODES)))
        if partials_chunk < 1:
            raise ValueError(f"partials_chunk is {partials_chunk}, but must be at least 1")
        self._before = _chosen
        _choose(Numerics(mode, partials_chunk))

    def __enter__(self) -> numerics:
        return self

    def __exit__(self, *exception: Any) -> None:
        _choose(self._before)


def _choose(choice: Numerics) -> None:
    global _chosen
    _chosen = choice

"""Units of a ViT: the embedding, each block, the final norm, the representation layer and the head.

A pipeline is split between units, and a config names them to freeze them. Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import FrozenSet, Sequence

_EMBEDDING = ("cls_token", "pos_embed", "patch_embed")
_OTHERS = ("embed", "norm", "pre_logits")
_BLOCKS = re.compile(r"blocks(?:\.([0-9]+)(?:-([0-9]+))?)?")


def unit_of(parameter: str) -> str:
    """Returns the unit of a parameter by its name: `embed`, `blocks.N`, `norm`, `pre_logits` or `head`."""
    first, _, rest = parameter.partition(".")
    if first == "blocks":
        return f"blocks.{rest.partition('.')[0]}"
    return "embed" if first in _EMBEDDING else first


def frozen_units(names: Sequence[str], depth: int) -> FrozenSet[str]:
    """Returns the units that `optim.freeze` names in a model of `depth` blocks; `blocks.2-4` names blocks 2, 3 and 4.

    Raises ValueError, with a message about the name, if a name is wrong.
    """
    return frozenset(unit for name in names for unit in _named(name, depth))


def _named(name: str, depth: int) -> Sequence[str]:
    found = _BLOCKS.fullmatch(name)
    if name in _OTHERS:
        return [name]
    if found is None:
        head = ": the head is always trained" if name == "head" else ""
        raise ValueError(
            f"{name!r} cannot be frozen{head}; give embed, blocks, blocks.N, blocks.FIRST-LAST, norm or pre_logits"
        )
    if found[1] is None:
        return [f"blocks.{index}" for index in range(depth)]
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise ValueError(f"{name!r} names no block: give the first block before the last, as in blocks.{last}-{first}")
    if last >= depth:
        raise ValueError(f"{name!r} names blocks that do not exist: the blocks are 0 to {depth - 1}")
    return [f"blocks.{index}" for index in range(first, last + 1)]

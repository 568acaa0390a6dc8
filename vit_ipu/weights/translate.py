"""Recognises the naming of tensors, and translates tensors from and to timm's names, which this program uses.

D width, H heads, P patch side, K classes.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.text import counted
from vit_ipu.weights.layouts import fold_layer_scale, from_flax, split_stacked_blocks, to_flax
from vit_ipu.weights.namings import NAMINGS, Naming, Tensors

_MAX_PREFIXES = 4
"""Limit of the modules around a ViT whose names are stripped, such as model.vit."""
_CLASS_TOKENS = ("cls_token", "class_token", "cls")

# ------------------------------------------------------------------------------------- recognition


def without_prefix(tensors: Tensors, source: str) -> Tensors:
    """Returns the tensors without the names of enclosing modules, such as a LightningModule's attribute.

    The tensors are returned as they are if no naming fits them with any prefix. Raises CheckpointError, with the other
    keys, if only some of the keys are those of a ViT with a prefix.
    """
    prefix, inner = "", tensors
    for _ in range(_MAX_PREFIXES + 1):
        naming = next((naming for naming in NAMINGS.values() if _fits(naming, inner)), None)
        if naming is not None:
            _refuse_others([name for name in tensors if not name.startswith(prefix)], prefix, naming, source)
            return inner
        firsts = Counter(name.partition(".")[0] for name in inner if "." in name)
        if not firsts:
            break
        first = firsts.most_common(1)[0][0] + "."
        prefix, inner = prefix + first, {n[len(first) :]: part for n, part in inner.items() if n.startswith(first)}
    return tensors


def _fits(naming: Naming, tensors: Tensors) -> bool:
    """Tells whether all keys belong to the naming, and one of them is a class token."""
    if not any(name.endswith(_CLASS_TOKENS) for name in tensors):
        return False
    return all(naming.ours(key) is not None for key in _weights_of(naming, tensors).values())


def _refuse_others(others: List[str], prefix: str, naming: Naming, source: str) -> None:
    if others:
        raise CheckpointError(
            f"{source}: beside a ViT in {naming.name}'s naming under {prefix[:-1]} it holds "
            f"{counted(len(others), 'other key')} of unknown use: {_first_keys(others)}: save the state dict of the "
            "ViT alone"
        )


def recognise(tensors: Tensors, source: str) -> Naming:
    """Returns the naming that all keys belong to.

    Raises CheckpointError, with the first unknown keys, if no naming or several namings fit.
    """
    unmatched = {name: _unmatched(naming, tensors) for name, naming in NAMINGS.items()}
    fitting = [name for name, (left, _) in unmatched.items() if not left]
    if len(fitting) == 1:
        return NAMINGS[fitting[0]]
    if fitting:
        raise CheckpointError(
            f"{source}: its {len(tensors)} keys ({next(iter(tensors), 'none')}, ...) fit the namings "
            f"{' and '.join(fitting)}: too few to tell"
        )
    nearest = max(unmatched, key=lambda name: unmatched[name][1])
    left, matched = unmatched[nearest]
    if matched == 0:
        raise CheckpointError(
            f"{source}: not a ViT in any known naming ({', '.join(NAMINGS)}): its first keys are "
            f"{_first_keys(list(tensors))}"
        )
    raise CheckpointError(
        f"{source}: not a plain ViT: {len(left)} of its keys are unknown to the nearest naming, {nearest}: "
        f"{_first_keys(left)}"
    )


def _unmatched(naming: Naming, tensors: Tensors) -> Tuple[List[str], int]:
    """Returns the keys that the naming does not contain, and the number of keys that it contains."""
    keys = _weights_of(naming, tensors)
    left = [original for original, key in keys.items() if naming.ours(key) is None]
    return left, len(keys) - len(left)


def _weights_of(naming: Naming, tensors: Tensors) -> Dict[str, str]:
    """Maps each key that is a weight to its spelling in the table."""
    prefix = next((p for p in naming.prefixes if any(key.startswith(p) for key in tensors)), "")
    spelled = {key: _respell(naming, key[len(prefix) :]) for key in tensors if key.startswith(prefix)}
    return {key: name for key, name in spelled.items() if not re.search(naming.ignored, name)}


def _respell(naming: Naming, key: str) -> str:
    if naming.flax:  # blocks stacked along the first axis are split later
        key = key.replace("/encoderblock/", "/encoderblock_0/")
    for pattern, replacement in naming.aliases:
        key = re.sub(pattern, replacement, key)
    return key


def _first_keys(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


# ------------------------------------------------------------------------------------- translation


def to_ours(tensors: Tensors, naming: Naming, source: str) -> Tensors:
    """Returns the tensors by our names, in float32 (float64 stays), with LayerScale folded in.

    Raises CheckpointError if a tensor of a block is missing, or shapes do not fit together.
    """
    if naming.flax:
        tensors = split_stacked_blocks(tensors, source)
    thirds: Dict[str, Dict[Optional[int], Tensor]] = {}
    for original, key in _weights_of(naming, tensors).items():
        found = naming.ours(key)
        assert found is not None, "recognise() has checked that all keys are of this naming"
        name, third = found
        tensor = tensors[original]
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if third in thirds.setdefault(name, {}):
            raise CheckpointError(f"{source}: {original} occurs twice, in two spellings")
        thirds[name][third] = from_flax(name, tensor, original, source) if naming.flax else tensor
    ours = {name: _join(name, parts, source) for name, parts in thirds.items()}
    if naming.pooler_apart and "head.weight" in ours:
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith("pre_logits.")}
    return fold_layer_scale(ours, source)


def from_ours(state: Tensors, naming: Naming, *, num_heads: int) -> Tensors:
    """Returns the tensors by the library's names, in its layout.

    Raises CheckpointError for a tensor that the library has no name for.
    """
    result: Tensors = {}
    for name, tensor in state.items():
        keys = naming.theirs(name)
        if keys is None:
            raise CheckpointError(f"{naming.name} has no name for {name}: write another format, such as native")
        if name.startswith("pre_logits.") and not naming.has_pre_logits:
            raise CheckpointError(f"{naming.name} has no place for {name}: its classifier has no representation layer")
        parts = tensor.chunk(3) if isinstance(keys, tuple) else (tensor,)
        for key, part in zip(keys if isinstance(keys, tuple) else (keys,), parts):
            result[key] = (to_flax(name, part, num_heads) if naming.flax else part).contiguous().clone()
    return result


def _join(name: str, parts: Dict[Optional[int], Tensor], source: str) -> Tensor:
    if None in parts:
        return parts[None]
    if set(parts) != {0, 1, 2} or len({tuple(part.shape) for part in parts.values()}) != 1:
        shapes = [tuple(parts[third].shape) if third in parts else "missing" for third in (0, 1, 2)]
        raise CheckpointError(
            f"{source}: query, key and value of {name} have shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    return torch.cat([parts[third] for third in (0, 1, 2)])

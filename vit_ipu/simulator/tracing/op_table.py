"""The aten operations that PopTorch 3.3/3.4 supports, from tables/aten_ops.tsv (made for PopTorch's torch, 2.0.1).

The installed torch may be newer and decompose a model differently: renamed operations are looked up under their old
names, and operations that the table lacks are accepted, with one warning for each.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Dict, Optional, Set

from vit_ipu.simulator.logs import logger


class Verdict(Enum):
    """PopTorch's treatment of an operation."""

    TAKEN = "taken"
    UNSUPPORTED = "unsupported"  # it has no handler
    NOT_INFERRED = "not inferred"  # it has no handler, and torch 2.0.1 cannot infer its output's shape


_VERDICTS = {
    "accepted": Verdict.TAKEN,
    "decomposed": Verdict.TAKEN,
    "raises": Verdict.UNSUPPORTED,
    "rejected": Verdict.UNSUPPORTED,
    "rejected-no-meta": Verdict.NOT_INFERRED,
}

# Operations of newer torch versions, with the operations that torch 2.0.1 ran instead.
_OLD_NAMES = {
    "aten::_safe_softmax": "aten::_softmax",
    "aten::_native_batch_norm_legit": "aten::native_batch_norm",
    "aten::_native_batch_norm_legit.no_stats": "aten::native_batch_norm",
    "aten::_native_batch_norm_legit_functional": "aten::native_batch_norm",
    "aten::_native_batch_norm_legit_no_training": "aten::native_batch_norm",
    "aten::_batch_norm_with_update": "aten::native_batch_norm",
    "aten::_batch_norm_no_update": "aten::native_batch_norm",
    "aten::_scaled_dot_product_attention_math": "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention": "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "aten::scaled_dot_product_attention",
    "aten::_scaled_dot_product_efficient_attention": "aten::scaled_dot_product_attention",
}

# Inner operations, with the outer operations that PopTorch handles as one, so that it never sees the inner ones.
_TAKEN_WHOLE = {
    "aten::_adaptive_avg_pool2d": "aten::adaptive_avg_pool2d",
    "aten::_adaptive_avg_pool3d": "aten::adaptive_avg_pool3d",
    "aten::_ctc_loss": "aten::ctc_loss.IntList",
    "aten::_ctc_loss.Tensor": "aten::ctc_loss.Tensor",
    "aten::_weight_norm_interface": "aten::_weight_norm",  # RegisterAtenOverloads.cpp, weightNormInterface
}

# Inner operations that PopTorch refuses on their own, with the function that it handles as one.
_PARTS = {"aten::max_pool3d_with_indices": "max_pool3d"}

# Operations that torch decomposes where the simulator cannot see it, with their part that has no handler.
_HIDDEN_PARTS = {
    "aten::diagonal": "aten::as_strided",
    "aten::diagonal_copy": "aten::as_strided",
    "aten::nan_to_num": "aten::nan_to_num.out",
    "aten::nan_to_num_": "aten::nan_to_num.out",
}

# Operations without a Meta kernel in torch 2.0.1: shape inference fails before PopTorch looks for a handler.
_WITHOUT_META = frozenset(
    "aten::kthvalue aten::masked_select aten::_unique aten::_unique2 aten::unique_dim aten::unique_consecutive "
    "aten::unique_dim_consecutive aten::repeat_interleave.Tensor aten::frexp.Tensor aten::logcumsumexp "
    "aten::logcumsumexp.out aten::cummax aten::cummax.out aten::cummin aten::cummin.out".split()
)


def verdict(name: str) -> Verdict:
    """Returns PopTorch's treatment of an operation, named with its overload, as in "aten::add.Tensor"."""
    if not name.startswith("aten::"):
        return Verdict.TAKEN
    if name in _WITHOUT_META:
        return Verdict.NOT_INFERRED
    status = _statuses().get(_known_as(name))
    if status is None:
        _warn_of_unknown(name)
        return Verdict.TAKEN
    return _VERDICTS[status]


def is_known(name: str) -> bool:
    """Tells whether the table has an operation, named with its overload."""
    return not name.startswith("aten::") or name in _WITHOUT_META or _known_as(name) in _statuses()


def part_without_handler(name: str) -> Optional[str]:
    """Returns the part that has no handler if torch decomposes the operation where the simulator cannot see it."""
    return _HIDDEN_PARTS.get(name)


def _known_as(name: str) -> str:
    """Returns the operation under which the table lists an operation."""
    return _OLD_NAMES.get(name, _TAKEN_WHOLE.get(name, _HIDDEN_PARTS.get(name, name)))


def takes_whole(function_name: str) -> bool:
    """Tells whether PopTorch handles a function of torch, such as "max_pool2d", as one operation."""
    return function_name in _accepted_symbols()


def is_part_of(name: str, function_name: str) -> bool:
    """Tells whether an operation belongs to a function of torch that PopTorch handles as one operation."""
    return name in _PARTS and _PARTS[name] == function_name


@lru_cache(maxsize=None)
def _statuses() -> Dict[str, str]:
    lines = (Path(__file__).parents[1] / "tables" / "aten_ops.tsv").read_text().splitlines()
    return {name: status for name, status, *_ in (line.split("\t") for line in lines[1:])}


@lru_cache(maxsize=None)
def _accepted_symbols() -> Set[str]:
    names = [name for name, status in _statuses().items() if status == "accepted"]
    return {name[len("aten::") :].partition(".")[0] for name in names}


@lru_cache(maxsize=None)
def _warn_of_unknown(name: str) -> None:
    logger.warning("%s is not an operation of torch 2.0.1: whether PopTorch takes it is not known", name)

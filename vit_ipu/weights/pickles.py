"""Reads torch's .pth, .pt, .bin and .ckpt files: weights alone, or a training checkpoint of any program.

The pickle in such a file is read as inert values (inert.py), whatever classes are in it: torch's unpickler is not used
and nothing is executed. Tensors are made by this module, and only those of the chosen state dict.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.text import shortened
from vit_ipu.weights.inert import Named
from vit_ipu.weights.torch_files import STORAGES, Saved, element_size, opened
from vit_ipu.weights.untrusted import FLOATS, TensorFile, is_counter, refusal, unbacked, wrong_type

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module")
"""Keys of the state dict in what a program saved: averaged weights first, as in timm."""
_HOLES = (("CVE-2025-32434", (2, 6)), ("CVE-2026-24747", (2, 10)))
"""CVEs that allow code execution in spite of weights_only, each with the first torch that fixes it."""
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 32
"""Limits of what a pickle holds beside tensors: references to references turn few bytes into any number of values."""
_MAX_DIMENSIONS = 64
"""Limit of torch for the dimensions of a tensor."""
_MAX_ARGUMENTS = 8
"""More than the functions that rebuild a plain tensor have."""
_MAX_SEARCHED, _MAX_SEARCH_DEPTH = 10_000, 4
"""Limits of the search for tensors at unusual places."""
_MAX_SHOWN = 40
"""Characters of a key that a message shows."""
_DTYPES = {str(dtype)[len("torch.") :]: dtype for dtype in FLOATS.values()}


def read_pickle(path: Path, *, trusted: bool, part: Optional[str]) -> TensorFile:
    """Reads the state dict in a file of torch.save; `part` is the key of the state dict, if several could be meant.

    A torch with known holes refuses the file unless it is trusted, although its own unpickler is not used. Raises
    CheckpointError, or any other Exception for a damaged file.
    """
    with opened(path) as saved:
        _check_trust(path, trusted)
        state, rest = _chosen(path, saved.value, part)
        return TensorFile(_tensors(path, _claims(path, state), saved), _plain_values(rest))


def _check_trust(path: Path, trusted: bool) -> None:
    holes = known_holes(torch.__version__)
    if holes and not trusted:
        raise refusal(
            path,
            f"torch {torch.__version__} may be made to run code by a pickle ({', '.join(holes)}): pin its sha256 in "
            "model.init_sha256, give --trust-pickle, or convert it on torch 2.10 or newer (vit-ipu convert)",
        )


def known_holes(version: str) -> Tuple[str, ...]:
    """Returns the CVEs that make a torch version unsafe for untrusted pickles; a pre-release counts as released."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return tuple(name for name, fixed in _HOLES if numbers < fixed)


# ------------------------------------------------------------------------------------ the state dict


def _chosen(path: Path, value: Any, part: Optional[str]) -> Tuple[Dict[Any, Any], Dict[Any, Any]]:
    """Splits what a program saved into the state dict and the rest. Raises CheckpointError if it is not clear which."""
    saved = _mapping(value)
    if saved is None:
        is_other = isinstance(value, Named) and not _is_tensor(value)
        if is_other:
            raise _asks_for(path, value.name)
        _refuse_deeper_tensors(path, value)
        raise refusal(path, "it holds no tensors")
    parts = _parts(saved)
    named = [key for key in parts if isinstance(key, str)]
    if part is not None and part not in named:
        known = f"it has {', '.join(sorted(named))}" if named else "it has no parts with weights"
        raise refusal(path, f"it has no weights under {part}: {known}")
    key = part or next((key for key in _WRAPPERS if key in parts), None)
    if key is not None:
        return parts[key] or {}, {name: inner for name, inner in saved.items() if name != key}
    state = {name: inner for name, inner in saved.items() if _is_tensor(inner)}
    if not state:
        _refuse_other_parts(path, saved, named)
        _refuse_deeper_tensors(path, saved)
    return state, {name: inner for name, inner in saved.items() if name not in state}


def _parts(saved: Dict[Any, Any]) -> Dict[Any, Optional[Dict[Any, Any]]]:
    """Returns the state dicts among some values; a dict that is there many times is looked through once."""
    has_tensors: Dict[int, bool] = {}
    for inner in saved.values():
        if id(inner) not in has_tensors:
            has_tensors[id(inner)] = _has_tensors(_mapping(inner))
    return {key: _mapping(inner) for key, inner in saved.items() if has_tensors[id(inner)]}


def _refuse_other_parts(path: Path, saved: Dict[Any, Any], named: List[str]) -> None:
    """Raises CheckpointError if a file without a usual state dict has others, or a complete model."""
    several = [key for key in named if len(_mapping(saved[key]) or {}) > 1]
    if several:
        what = "two networks of self-distillation (DINO)" if {"student", "teacher"} <= set(several) else "weights"
        example = "teacher" if "teacher" in several else several[0]
        raise refusal(path, f"it holds {what} under {', '.join(several)}: name one, for example {path.name}#{example}")
    for key in _WRAPPERS:
        if isinstance(saved.get(key), Named) and _mapping(saved[key]) is None:
            raise _asks_for(path, saved[key].name)


def _refuse_deeper_tensors(path: Path, value: Any) -> None:
    """Raises CheckpointError if a state dict is deeper in the file than those that are looked for."""
    places, seen = [("", value, 0)], set()
    for place, inner, depth in places:  # grows
        pairs = _mapping(inner)
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        if depth and _has_tensors(pairs):
            raise refusal(path, f"its tensors are deeper, in {place}: save that state dict alone with torch.save")
        if depth < _MAX_SEARCH_DEPTH:
            items = enumerate(inner) if isinstance(inner, (list, tuple)) else (pairs or {}).items()
            room = max(0, _MAX_SEARCHED - len(places))
            places += [(f"{place}[{_shown(key)}]", part, depth + 1) for key, part in itertools.islice(items, room)]


def _shown(key: Any) -> str:
    if isinstance(key, str):
        return repr(shortened(key, _MAX_SHOWN))
    return str(key) if isinstance(key, int) and key.bit_length() < 64 else "..."


def _asks_for(path: Path, name: str) -> CheckpointError:
    return refusal(
        path,
        f"it asks for {name}, which is neither a tensor nor a plain value: save its state_dict() alone where you trust "
        "it",
    )


def _mapping(value: Any) -> Optional[Dict[Any, Any]]:
    """Returns the pairs of a dict, or of a class derived from dict such as OrderedDict; None for another value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Named) and (value.pairs or value.name == "collections.OrderedDict"):
        return value.pairs
    return None


def _has_tensors(values: Optional[Dict[Any, Any]]) -> bool:
    return values is not None and any(_is_tensor(value) for value in values.values())


# ------------------------------------------------------------------------------------- its tensors


@dataclass(frozen=True)
class _Claim:
    """A tensor as the pickle describes it, before its values are read."""

    key: Any
    """Name of the storage in the archive."""
    dtype: str
    kind: str = ""
    """`sparse`, `quantized` or `meta` for a tensor that is not a plain one."""
    num_bytes: int = 0
    """Size of the storage."""
    offset: int = 0
    size: Tuple[int, ...] = ()
    stride: Tuple[int, ...] = ()


_REBUILT = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_WITH_TYPE = "torch._tensor._rebuild_from_type_v2"


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Named) and value.name.startswith(("torch._utils._rebuild_", _WITH_TYPE))


def _claims(path: Path, state: Dict[Any, Any]) -> Dict[str, _Claim]:
    """Returns the description of each weight. Raises CheckpointError if a value is not a weight by its name."""
    claims = {}
    for name, value in state.items():
        if not isinstance(name, str) or not _is_tensor(value):
            if isinstance(value, Named) and not _is_tensor(value):
                raise _asks_for(path, value.name)
            kind = "Tensor" if _is_tensor(value) else type(value).__name__
            raise refusal(path, f"{name!r} is a {kind}, not a tensor by its name")
        claim = _claim(path, value)
        if claim.kind or claim.dtype not in _DTYPES:
            if is_counter(name, claim.size) and not claim.kind:
                continue
            raise wrong_type(path, name, f"{claim.kind} {claim.dtype}".strip())
        claims[name] = claim
    return claims


def _claim(path: Path, value: Named) -> _Claim:
    """Reads the arguments of the function of torch._utils that would rebuild a tensor."""
    arguments = value.arguments
    if value.name in _PARAMETERS:
        return _claim(path, arguments[0])
    if (
        value.name == _WITH_TYPE
    ):  # a class of tensors with attributes: the function that rebuilds the tensor comes first
        function, _, inner = arguments[:3]
        return _claim(path, function(*inner[:_MAX_ARGUMENTS]))
    if value.name == "torch._utils._rebuild_sparse_tensor":
        return _Claim(None, _claim(path, arguments[1][1]).dtype, kind="sparse")
    if value.name == "torch._utils._rebuild_meta_tensor_no_storage":
        return _Claim(None, _short(arguments[0]), kind="meta")
    if value.name not in (*_REBUILT, "torch._utils._rebuild_qtensor"):
        raise _asks_for(path, value.name)
    storage, offset, size, stride = arguments[:4]
    if not (_is_shape(size) and _is_shape(stride)):
        raise refusal(path, "a tensor's size or stride is not a tuple of at most 64 numbers: fetch it again")
    what, storage_class, key, _, count = storage.to[:5]
    dtype = STORAGES.get(_short(storage_class), "")
    if value.name.endswith("_v3"):  # with a storage of bytes
        dtype = _short(arguments[6])
    if what != "storage" or not dtype or not isinstance(key, str):
        raise _asks_for(path, storage_class.name)
    if value.name.endswith("_qtensor"):
        return _Claim(key, dtype, kind="quantized")
    if not _is_shape((count, offset)) or min(count, offset, *size, *stride) < 0 or len(size) != len(stride):
        raise refusal(path, f"a tensor of size {size} and stride {stride} is damaged: fetch it again")
    num_bytes = count if value.name.endswith("_v3") else count * element_size(dtype)
    return _Claim(key, dtype, "", num_bytes, offset, tuple(size), tuple(stride))


def _is_shape(numbers: Any) -> bool:
    """Tells whether a value is a short tuple of numbers: another one could take any time to print or to compare."""
    is_short = isinstance(numbers, (tuple, list)) and len(numbers) <= _MAX_DIMENSIONS
    return is_short and all(isinstance(number, int) and abs(number) < 1 << 63 for number in numbers)


def _short(value: Any) -> str:
    """Returns the last part of the name of a class."""
    return str(value.name).rpartition(".")[2]


def _tensors(path: Path, claims: Dict[str, _Claim], saved: Saved) -> Dict[str, Tensor]:
    """Returns contiguous tensors. Raises CheckpointError for tensors that grow when they are made contiguous."""
    for name, claim in claims.items():
        _check_backed(path, name, claim, saved)
    contents = {key: saved.read(key) for key in {claim.key for claim in claims.values() if 0 not in claim.size}}
    tensors = {name: _tensor(claim, contents) for name, claim in claims.items()}
    copied = sum(part.numel() * part.element_size() for part in tensors.values() if not part.is_contiguous())
    size = path.stat().st_size
    if copied > size:
        raise refusal(path, f"its tensors overlap and would take {copied} bytes, but the file has {size}")
    return {name: part.contiguous() for name, part in tensors.items()}


def _check_backed(path: Path, name: str, claim: _Claim, saved: Saved) -> None:
    """Raises CheckpointError unless the file has the storage, in its size, with room for the tensor."""
    held = saved.sizes.get(claim.key)
    if held is None:
        raise refusal(path, f"it lacks the values of {name}: fetch it again")
    if held != claim.num_bytes:
        raise refusal(
            path, f"the values of {name} should take {claim.num_bytes} bytes, but have {held}: fetch it again"
        )
    element = element_size(claim.dtype)
    last = claim.offset + sum((length - 1) * step for length, step in zip(claim.size, claim.stride))
    claimed = math.prod(claim.size) * element
    if claimed and max(claimed, (last + 1) * element) > held:
        raise unbacked(path, name, claim.size, max(claimed, (last + 1) * element), held)


def _tensor(claim: _Claim, contents: Dict[str, bytearray]) -> Tensor:
    dtype = _DTYPES[claim.dtype]
    if 0 in claim.size:
        return torch.empty(claim.size, dtype=dtype)
    return torch.frombuffer(contents[claim.key], dtype=dtype).as_strided(claim.size, claim.stride, claim.offset)


# ---------------------------------------------------------------------------- what is beside the tensors


class _NotPlain(Exception):
    """A value holds tensors, or more values than the limits allow."""


_LEFT_OUT = object()


def _plain_values(values: Dict[Any, Any]) -> Dict[str, Any]:
    """Returns the plain values by their names: text, numbers and None, and lists, tuples and dicts of these.

    The arguments of a command line (argparse) count as a dict. Values of other classes are left out of the dicts that
    hold them; an entry that holds tensors, or is beyond the limits, is left out completely.
    """
    found, left = {}, [_MAX_VALUES]
    for name, value in values.items():
        try:
            plain = _plain(value, left, 0)
        except _NotPlain:
            continue
        if isinstance(name, str) and plain is not _LEFT_OUT:
            found[name] = plain
    return found


def _plain(value: Any, left: List[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_DEPTH or _is_tensor(value):
        raise _NotPlain
    if isinstance(value, Named) and value.name == "argparse.Namespace":
        value = value.state
    pairs = _mapping(value)
    if pairs is not None:
        kept = {key: _plain(part, left, depth + 1) for key, part in pairs.items() if isinstance(key, (str, int))}
        return {key: part for key, part in kept.items() if part is not _LEFT_OUT}
    if isinstance(value, (list, tuple)):
        parts = [_plain(part, left, depth + 1) for part in value]
        return _LEFT_OUT if any(part is _LEFT_OUT for part in parts) else type(value)(parts)
    return value if value is None or isinstance(value, (str, int, float)) else _LEFT_OUT

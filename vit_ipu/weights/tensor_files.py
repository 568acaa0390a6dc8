"""Reads tensors from untrusted files: .safetensors, .npz and torch's .pth, .pt and .bin.

Nothing in a file is executed, every claim that can be checked is checked, and a refusal is an error of one line.
A pickle is only read by a torch whose `weights_only` unpickler has no known holes, unless the caller trusts the file.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.text import printable, shortened, single_line
from vit_ipu.weights.choose import INDEX_SUFFIX, leads_out, weight_map
from vit_ipu.weights.choose import WEIGHT_SUFFIXES as WEIGHT_SUFFIXES

_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_COUNTERS = ("num_batches_tracked", "n_averaged", "step", "count")
"""Integer scalars that training leaves among weights and no model needs."""
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "module")
"""Keys of the state dict in what a program saved: averaged weights first, as in timm."""
_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""
_HOLES = (("CVE-2025-32434", (2, 6)), ("CVE-2026-24747", (2, 10)))
"""CVEs that allow code execution in spite of weights_only, each with the first torch that fixes it."""
_MAX_UNPACKED, _MAX_RATIO = 1 << 30, 20
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 32
"""Limits of what a pickle holds beside tensors: references to references turn few bytes into any number of values."""
_FINITE_CHUNK = 1 << 22
_LONGEST_MESSAGE = 500


@dataclass(frozen=True)
class TensorFile:
    """The content of a file."""

    tensors: Dict[str, Tensor]
    """Tensors by name: contiguous, on the CPU, finite, in the floating type of the file."""
    metadata: Dict[str, Any]
    """Plain values that a pickle holds beside the tensors; the `__metadata__` of safetensors."""


def read_tensors(path: Path, *, trust_pickle: bool = False) -> TensorFile:
    """Reads the tensors of a file or of a safetensors index; prefixes that every name has are stripped.

    `trust_pickle` lets a torch with known holes read a pickle. Raises CheckpointError.
    """
    found = _read(path, trust_pickle)
    if not found.tensors:
        raise _refusal(path, "it holds no tensors")
    _check_finite(path, found.tensors)
    return TensorFile(_without_prefixes(found.tensors), found.metadata)


def _read(path: Path, trust_pickle: bool) -> TensorFile:
    try:
        _check_is_weights(path)
        if path.name.endswith(INDEX_SUFFIX):
            return _read_shards(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_npz(path) if path.suffix == ".npz" else _read_pickle(path, trust_pickle)
    except CheckpointError:
        raise
    except Exception as error:  # of three parsers on untrusted bytes: no list of their errors is complete
        reason = str(error) or type(error).__name__
        raise _refusal(path, f"it is damaged or not what its name says ({reason}): fetch it again") from error


def _refusal(path: Path, problem: str) -> CheckpointError:
    """Returns an error of one printable line, whatever names from the file `problem` quotes."""
    text = printable(single_line(problem))
    return CheckpointError(f"cannot read {path}: {shortened(text, _LONGEST_MESSAGE)}")


def _check_is_weights(path: Path) -> None:
    if path.is_dir():
        raise _refusal(path, "it is a folder: name a file")
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    if not path.name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX)):
        raise _refusal(path, f"expected a file that ends in {', '.join((*WEIGHT_SUFFIXES, INDEX_SUFFIX))}")
    if not path.is_file():
        raise _refusal(path, "it is not a regular file")
    head = _head(path)
    if not head:
        raise _refusal(path, "it is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise _refusal(path, "it only points to the weights: fetch them with git lfs pull")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise _refusal(path, f"{error.strerror}") from None


# ------------------------------------------------------------------------------------------ tensors


def _is_counter(name: str, shape: Iterable[int]) -> bool:
    return not list(shape) and re.split(r"[./]", name)[-1] in _COUNTERS


def _wrong_type(path: Path, name: str, kind: Any) -> CheckpointError:
    return _refusal(path, f"{name} is {kind}: weights are float16, bfloat16, float32 or float64")


def _unbacked(path: Path, name: str, shape: Tuple[int, ...], claimed: int, held: int) -> CheckpointError:
    return _refusal(path, f"{name} of shape {shape} would take {claimed} bytes, but has {held}")


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # In parts: the temporaries of isfinite are larger than its input.
        if not all(bool(part.isfinite().all()) for part in torch.split(tensor.flatten(), _FINITE_CHUNK)):
            raise _refusal(path, f"{name} holds NaN or infinity: take an earlier checkpoint")


def _without_prefixes(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _without_prefixes({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    return tensors


# -------------------------------------------------------------------------------------- safetensors


def _read_safetensors(path: Path) -> TensorFile:
    tensors = {}
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (the file is not a dict)
            claim = file.get_slice(name)
            if claim.get_dtype() in _FLOATS:
                tensors[name] = _aligned(file.get_tensor(name))
            elif not _is_counter(name, claim.get_shape()):
                raise _wrong_type(path, name, claim.get_dtype())
        return TensorFile(tensors, dict(file.metadata() or {}))


def _aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor, copied if the file stores it at an address that its type does not allow."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _read_shards(index: Path) -> TensorFile:
    keys: Dict[str, List[str]] = {}
    for key, name in weight_map(index).items():
        keys.setdefault(name, []).append(key)
    tensors: Dict[str, Tensor] = {}
    metadata: Dict[str, Any] = {}
    for name, wanted in sorted(keys.items()):
        shard = index.parent / name
        if not shard.is_file():
            raise _refusal(index, f"its shard {name} is missing: fetch it too")
        if leads_out(shard):
            raise _refusal(index, f"its shard {name} leads out of the folder: put the file there")
        found = _read(shard, False)
        for key in wanted:
            if key not in found.tensors:
                raise _refusal(index, f"its shard {name} lacks {key}: fetch it again")
            tensors[key] = found.tensors[key]
        metadata.update(found.metadata)
    return TensorFile(tensors, metadata)


# --------------------------------------------------------------------------------------------- zips


def _members(path: Path, archive: zipfile.ZipFile) -> List[zipfile.ZipInfo]:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise _refusal(path, "two members of the archive have one name")
    claimed, size = sum(member.file_size for member in members), path.stat().st_size
    if claimed > _MAX_UNPACKED and claimed > _MAX_RATIO * size:
        raise _refusal(path, f"it claims {claimed / 2**30:.1f} GiB in a file of {size / 2**20:.1f} MiB")
    return members


def _read_npz(path: Path) -> TensorFile:
    tensors = {}
    with zipfile.ZipFile(str(path)) as archive:
        for member in _members(path, archive):
            name, suffix = member.filename[:-4], member.filename[-4:]
            if suffix != ".npy":
                raise _refusal(path, f"{member.filename} is not an array")
            tensor = _read_array(path, name, member, archive)
            if tensor is not None:
                tensors[name] = tensor
    return TensorFile(tensors, {})


def _read_array(path: Path, name: str, member: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Optional[Tensor]:
    """Reads a member of an .npz file; None if it is a counter. The header is compared with the size before its use."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # later versions are for structured types
            raise _refusal(path, f"{name} is not an array of numbers")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names and not dtype.subdtype
        if not is_bfloat16 and (dtype.kind != "f" or dtype.itemsize > 8):
            if dtype.kind in "iu" and _is_counter(name, shape):
                return None
            raise _wrong_type(path, name, f"an array of {dtype}")
        claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if claimed != held or min(shape, default=0) < 0:
            raise _unbacked(path, name, shape, claimed, held)
        stored = np.ndarray(
            shape,
            "<i2" if is_bfloat16 else dtype,  # the bits, because numpy lacks bfloat16
            buffer=file.read(held),
            order="F" if fortran_order else "C",
        )
    native = torch.from_numpy(np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C"))
    return native.view(torch.bfloat16) if is_bfloat16 else native


# ------------------------------------------------------------------------------------------ pickles


def _read_pickle(path: Path, trusted: bool) -> TensorFile:
    _check_torch_archive(path)
    holes = known_holes(torch.__version__)
    if holes and not trusted:
        raise _refusal(
            path,
            f"torch {torch.__version__} may be made to run code by a pickle ({', '.join(holes)}): pin its sha256 in "
            "model.init_sha256, give --trust-pickle, or convert it on torch 2.10 or newer (vit-ipu convert)",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about its own storages and sparse tensors
            state, rest = _unwrapped(torch.load(str(path), map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _refusal(path, f"{name!r} is a {type(value).__name__}, not a tensor by its name")
    state = {
        name: part for name, part in state.items() if part.is_floating_point() or not _is_counter(name, part.shape)
    }
    _check_storages(path, state)
    left = [_MAX_VALUES]
    metadata = {name: part for name, part in rest.items() if isinstance(name, str) and _is_plain(part, left)}
    return TensorFile({name: part.detach().contiguous() for name, part in state.items()}, metadata)


def known_holes(version: str) -> Tuple[str, ...]:
    """Returns the CVEs that make a torch version unsafe for untrusted pickles; a pre-release counts as released."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return tuple(name for name, fixed in _HOLES if numbers < fixed)


def _check_torch_archive(path: Path) -> None:
    """Refuses a file that torch.load would not read as tensors in a plain zip, before torch opens the file."""
    head = _head(path)
    if head[257:262] == b"ustar":
        raise _refusal(path, "it is a tar file, the format of torch's first years: save it again with a newer torch")
    if head.startswith(b"\x80"):
        raise _refusal(
            path,
            "it is a bare pickle, as torch wrote before 1.6: load it where you trust it, save it with a newer torch",
        )
    if not head.startswith(b"PK\x03\x04"):
        raise _refusal(path, "it is not a file of torch.save")
    with zipfile.ZipFile(str(path)) as archive:
        members = _members(path, archive)
    parts = [member.filename.split("/") for member in members]
    if any(len(part) > 1 and part[1] in ("code", "constants.pkl") for part in parts):
        raise _refusal(path, "it is a TorchScript program: save its state_dict() with torch.save instead")
    pickles = sum(part[-1] == "data.pkl" for part in parts)
    if pickles != 1:
        raise _refusal(path, f"it has {pickles} members data.pkl where torch.save writes one")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refusal(path, "its members are compressed, which torch.save never does: save it again with torch")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _refusal(path, "its members overlap, which torch.save never does")


def _refused_pickle(path: Path, message: str) -> CheckpointError:
    named = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", message)
    if named is None:
        return _refusal(path, "its pickle is damaged or holds more than tensors: save its state_dict() alone")
    return _refusal(
        path,
        f"it asks for {named.group(1)}, which is neither a tensor nor a plain value: save its state_dict() alone where "
        "you trust it",
    )


def _unwrapped(value: Any) -> Tuple[Dict[Any, Any], Dict[Any, Any]]:
    """Splits what a program saved into the state dict and the rest."""
    if not isinstance(value, dict):
        return {}, {}
    for key in _WRAPPERS:
        inner = value.get(key)
        if isinstance(inner, dict) and any(isinstance(part, Tensor) for part in inner.values()):
            return inner, {name: part for name, part in value.items() if name != key}
    state = {name: part for name, part in value.items() if isinstance(part, Tensor)}
    return state, {name: part for name, part in value.items() if not isinstance(part, Tensor)}


def _check_storages(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are not dense and floating-point, and tensors that grow when they are made contiguous."""
    size, copied = path.stat().st_size, 0
    for name, tensor in tensors.items():
        _check_dense_float(path, name, tensor)
        claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if claimed > held:
            raise _unbacked(path, name, tuple(tensor.shape), claimed, held)
        copied += 0 if tensor.is_contiguous() else claimed
    if copied > size:
        raise _refusal(path, f"its tensors overlap and would take {copied} bytes, but the file has {size}")


def _check_dense_float(path: Path, name: str, tensor: Tensor) -> None:
    strange = "quantized" if tensor.is_quantized else "sparse" if tensor.layout != torch.strided else ""
    if tensor.device.type != "cpu":  # map_location moves all tensors except those on "meta", which have no data
        strange = tensor.device.type
    if strange or tensor.dtype not in _FLOATS.values():
        raise _wrong_type(path, name, f"{strange} {tensor.dtype}".replace("torch.", "").strip())


def _is_plain(value: Any, left: List[int], depth: int = 0) -> bool:
    """Tells whether a value is text, a number or None, or a list, tuple or dict of such values, within bounds."""
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_DEPTH:
        return False
    if isinstance(value, dict):
        parts, keys = list(value.values()), list(value)
        return all(isinstance(key, (str, int)) for key in keys) and _is_plain(parts, left, depth)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part, left, depth + 1) for part in value)
    return value is None or isinstance(value, (str, int, float))

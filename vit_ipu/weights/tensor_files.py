"""Reads tensors from untrusted files: .safetensors, .npz and torch's .pth, .pt and .bin.

Nothing in a file is executed, every claim that can be checked is checked, and a refusal is an error of one line.
A torch with known holes refuses pickles, unless the caller trusts the file.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.choose import INDEX_SUFFIXES, WEIGHT_SUFFIXES, is_index, leads_out, weight_map
from vit_ipu.weights.pickles import read_pickle
from vit_ipu.weights.untrusted import (
    FLOATS,
    TensorFile,
    head_of,
    is_counter,
    members_of,
    refusal,
    unbacked,
    wrong_type,
)

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""Prefixes that DistributedDataParallel, torch.compile and the usual attributes of a LightningModule put before every
name."""
_PROJECTION_HEADS = r"(dino_|ibot_)?head\.(mlp2?|last_layer2?|last_norm2?)\."
"""Pattern of the names of DINO's and iBOT's projection heads, beside a ViT by the name `backbone`."""
_FINITE_CHUNK = 1 << 22


def read_tensors(path: Path, *, trust_pickle: bool = False, part: Optional[str] = None) -> TensorFile:
    """Reads the tensors of a file or of an index of shards; prefixes that every name has are stripped.

    `trust_pickle` lets a torch with known holes read a pickle. `part` is the key of a state dict in a pickle. Raises
    CheckpointError.
    """
    found = _read(path, trust_pickle, part)
    if not found.tensors:
        raise refusal(path, "it holds no tensors")
    _check_finite(path, found.tensors)
    return TensorFile(_without_projection_heads(_without_prefixes(found.tensors)), found.metadata)


def _read(path: Path, trust_pickle: bool, part: Optional[str] = None) -> TensorFile:
    try:
        _check_is_weights(path)
        has_parts = path.suffix not in (".safetensors", ".npz", ".json")
        if part is not None and not has_parts:
            raise refusal(path, f"it has no parts such as {part}: only a pickle, such as .pth or .ckpt, has parts")
        if has_parts:
            return read_pickle(path, trusted=trust_pickle, part=part)
        if path.suffix == ".json":
            return _read_shards(path, trust_pickle)
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except CheckpointError:
        raise
    except Exception as error:  # of three parsers on untrusted bytes: no list of their errors is complete
        reason = str(error) or type(error).__name__
        raise refusal(path, f"it is damaged or not what its name says ({reason}): fetch it again") from error


def _check_is_weights(path: Path) -> None:
    if path.is_dir():
        raise refusal(path, "it is a folder: name a file")
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: there is no such file or folder")
    if not path.name.endswith(WEIGHT_SUFFIXES) and not is_index(path):
        raise refusal(path, f"expected a file that ends in {', '.join((*WEIGHT_SUFFIXES, *INDEX_SUFFIXES))}")
    if not path.is_file():
        raise refusal(path, "it is not a regular file")
    head = head_of(path)
    if not head:
        raise refusal(path, "it is empty: fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise refusal(path, "it only points to the weights: fetch them with git lfs pull")


# ------------------------------------------------------------------------------------------ tensors


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # In parts: the temporaries of isfinite are larger than its input.
        if not all(bool(part.isfinite().all()) for part in torch.split(tensor.flatten(), _FINITE_CHUNK)):
            raise refusal(path, f"{name} holds NaN or infinity: take an earlier checkpoint")


def _without_prefixes(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _without_prefixes({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    return tensors


def _without_projection_heads(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Returns the ViT of a network that DINO, iBOT or DINOv2 trained; other tensors are returned as they are."""
    kept = {name: tensor for name, tensor in tensors.items() if not re.match(_PROJECTION_HEADS, name)}
    if len(kept) == len(tensors) or not all(name.startswith("backbone.") for name in kept):
        return tensors
    return {name[len("backbone.") :]: tensor for name, tensor in kept.items()}


# -------------------------------------------------------------------------------------- safetensors


def _read_safetensors(path: Path) -> TensorFile:
    tensors = {}
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (the file is not a dict)
            claim = file.get_slice(name)
            if claim.get_dtype() in FLOATS:
                tensors[name] = _aligned(file.get_tensor(name))
            elif not is_counter(name, claim.get_shape()):
                raise wrong_type(path, name, claim.get_dtype())
        return TensorFile(tensors, dict(file.metadata() or {}))


def _aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor, copied if the file stores it at an address that its type does not allow."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _read_shards(index: Path, trust_pickle: bool) -> TensorFile:
    keys: Dict[str, List[str]] = {}
    for key, name in weight_map(index).items():
        keys.setdefault(name, []).append(key)
    tensors: Dict[str, Tensor] = {}
    metadata: Dict[str, Any] = {}
    for name, wanted in sorted(keys.items()):
        shard = index.parent / name
        if not shard.is_file():
            raise refusal(index, f"its shard {name} is missing: fetch it too")
        if leads_out(shard):
            raise refusal(index, f"its shard {name} leads out of the folder: put the file there")
        found = _read(shard, trust_pickle)
        for key in wanted:
            if key not in found.tensors:
                raise refusal(index, f"its shard {name} lacks {key}: fetch it again")
            tensors[key] = found.tensors[key]
        metadata.update(found.metadata)
    return TensorFile(tensors, metadata)


# --------------------------------------------------------------------------------------------- zips


def _read_npz(path: Path) -> TensorFile:
    tensors = {}
    with zipfile.ZipFile(str(path)) as archive:
        for member in members_of(path, archive):
            name, suffix = member.filename[:-4], member.filename[-4:]
            if suffix != ".npy":
                raise refusal(path, f"{member.filename} is not an array")
            tensor = _read_array(path, name, member, archive)
            if tensor is not None:
                tensors[name] = tensor
    return TensorFile(tensors, {})


def _read_array(path: Path, name: str, member: zipfile.ZipInfo, archive: zipfile.ZipFile) -> Optional[Tensor]:
    """Reads a member of an .npz file; None if it is a counter. The header is compared with the size before its use."""
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # later versions are for structured types
            raise refusal(path, f"{name} is not an array of numbers")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names and not dtype.subdtype
        if not is_bfloat16 and (dtype.kind != "f" or dtype.itemsize > 8):
            if dtype.kind in "iu" and is_counter(name, shape):
                return None
            raise wrong_type(path, name, f"an array of {dtype}")
        claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if claimed != held or min(shape, default=0) < 0:
            raise unbacked(path, name, shape, claimed, held)
        stored = np.ndarray(
            shape,
            "<i2" if is_bfloat16 else dtype,  # the bits, because numpy lacks bfloat16
            buffer=file.read(held),
            order="F" if fortran_order else "C",
        )
    native = torch.from_numpy(np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C"))
    return native.view(torch.bfloat16) if is_bfloat16 else native

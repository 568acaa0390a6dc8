"""Checks that the readers of untrusted files share: refusals of one line, types of tensors, sizes of archives."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import torch
from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.text import escaped, shortened, single_line

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""Types of weights, by safetensors' names."""
_COUNTERS = ("num_batches_tracked", "n_averaged", "step", "count")
"""Integer scalars that training leaves among weights and no model needs."""
_MAX_UNPACKED, _MAX_RATIO = 1 << 30, 20
_LONGEST_MESSAGE = 500


@dataclass(frozen=True)
class TensorFile:
    """The content of a file."""

    tensors: Dict[str, Tensor]
    """Tensors by name: contiguous, on the CPU, finite, in the floating type of the file."""
    metadata: Dict[str, Any]
    """Plain values that a pickle holds beside the tensors; the `__metadata__` of safetensors."""


def refusal(path: Path, problem: str) -> CheckpointError:
    """Returns an error of one printable line, whatever names from the file `problem` quotes."""
    text = escaped(single_line(problem))
    return CheckpointError(f"cannot read {path}: {shortened(text, _LONGEST_MESSAGE)}")


def head_of(path: Path) -> bytes:
    """Returns the first 512 bytes of a file. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise refusal(path, f"{error.strerror}") from None


def is_counter(name: str, shape: Iterable[int]) -> bool:
    """Tells whether a tensor is an integer that training counted with."""
    return not list(shape) and re.split(r"[./]", name)[-1] in _COUNTERS


def wrong_type(path: Path, name: str, kind: Any) -> CheckpointError:
    """Returns the refusal of a tensor that is not floating-point and dense."""
    return refusal(path, f"{name} is {kind}: weights are float16, bfloat16, float32 or float64")


def unbacked(path: Path, name: str, shape: Tuple[int, ...], claimed: int, held: int) -> CheckpointError:
    """Returns the refusal of a tensor with another size than the file holds for it."""
    return refusal(path, f"{name} of shape {shape} would take {claimed} bytes, but has {held}")


def members_of(path: Path, archive: zipfile.ZipFile) -> List[zipfile.ZipInfo]:
    """Lists the members of a zip. Raises CheckpointError if names occur twice or sizes are beyond reason."""
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise refusal(path, "two members of the archive have one name")
    claimed, size = sum(member.file_size for member in members), path.stat().st_size
    if claimed > _MAX_UNPACKED and claimed > _MAX_RATIO * size:
        raise refusal(path, f"it claims {claimed / 2**30:.1f} GiB in a file of {size / 2**20:.1f} MiB")
    return members

"""Finds the file of a folder that holds the weights: safetensors before pickles, one file or an index of shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List

from vit_ipu.errors import CheckpointError
from vit_ipu.small_files import read_json

WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
"""Suffixes of a file that lists the shards of weights in several files; a variant is named before the last dot."""
_INDEX = re.compile(r".+\.(safetensors|bin)\.index(\.[\w-]+)?\.json")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_VARIANTS = (
    re.compile(r"model\.[\w-]+\.safetensors|model\.safetensors\.index\.[\w-]+\.json"),
    re.compile(r"pytorch_model\.[\w-]+\.bin|pytorch_model\.bin\.index\.[\w-]+\.json"),
)
"""Names of WEIGHT_FILES with a variant, such as model.fp16.safetensors: transformers.modeling_utils, `_add_variant`."""


def weight_file(folder: Path) -> Path:
    """Returns the file with the weights in a foreign folder, safetensors before pickles. Raises CheckpointError."""
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        found = _other_files(folder)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CheckpointError(f"{folder} holds several files of weights ({names}): name one of them")
    if not found:
        raise CheckpointError(
            f"{folder} holds no weights: expected {', '.join(WEIGHT_FILES)} or one file that ends in "
            f"{', '.join(WEIGHT_SUFFIXES)}"
        )
    if leads_out(found[0]):
        raise CheckpointError(f"{found[0]} leads out of the folder: name the file that it links to")
    return found[0]


def _other_files(folder: Path) -> List[Path]:
    """Lists the files of a variant, safetensors before pickles; without one, all files of weights. Shards do not count
    beside an index."""
    files = [path for path in folder.glob("*") if is_index(path) or path.name.endswith(WEIGHT_SUFFIXES)]
    files = sorted(path for path in files if path.is_file())
    if any(map(is_index, files)):
        files = [path for path in files if not _SHARD.fullmatch(path.name)]
    variants = ([path for path in files if pattern.fullmatch(path.name)] for pattern in _VARIANTS)
    return next(filter(None, variants), files)


def is_index(path: Path) -> bool:
    """Tells whether a file, by its name, lists the shards of weights in several files."""
    return _INDEX.fullmatch(path.name) is not None


def has_usual_name(path: Path) -> bool:
    """Tells whether a file has a name that libraries give to the weights which the config.json beside it describes."""
    return path.name in WEIGHT_FILES or any(pattern.fullmatch(path.name) for pattern in _VARIANTS)


def leads_out(path: Path) -> bool:
    """Tells whether links lead from `path` out of its folder; links into a Hugging Face cache's blobs do not count."""
    folder = path.parent.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        repository = folder.parent.parent
        homes.append(repository / "blobs")
        if repository.name.startswith("models--"):  # huggingface_hub 2 shares blobs among the repositories of a cache
            homes.append(repository.parent / "blobs")
    return not any(home in path.resolve().parents for home in homes)


def weight_map(index: Path) -> Dict[str, str]:
    """Returns the shard of each tensor in an index of shards: a file beside the index. Raises CheckpointError."""
    named = _INDEX.fullmatch(index.name)
    kind = named.group(1) if named else "safetensors"
    try:
        shards: Dict[str, str] = dict(read_json(index)["weight_map"])
        plain = [re.fullmatch(rf"[^/\\\0]+\.{kind}", name) for name in shards.values()]
    except (OSError, ValueError, LookupError, TypeError):
        raise CheckpointError(f"cannot read {index}: it is not an index of {kind} files") from None
    for name, match in zip(shards.values(), plain):
        if match is None:
            raise CheckpointError(f"cannot read {index}: its shard {name!r} is not a .{kind} file beside it")
    return shards

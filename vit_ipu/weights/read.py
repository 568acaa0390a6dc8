"""Reads the weights of a complete ViT with their metadata: a run of this program, or a ViT in any known naming."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Optional

from torch import Tensor

from vit_ipu.errors import CheckpointError
from vit_ipu.text import Notify
from vit_ipu.weights.choose import has_usual_name, is_index, weight_file
from vit_ipu.weights.completeness import measured_shape, require_stated_shape, require_whole, with_zero_biases
from vit_ipu.weights.config_values import FolderConfig
from vit_ipu.weights.fetch import locate, split_part
from vit_ipu.weights.folder_configs import read_folder_config, with_remedy
from vit_ipu.weights.layouts import flax_heads
from vit_ipu.weights.metadata import WeightsMetadata, metadata_of, read_metadata
from vit_ipu.weights.namings import IMAGE_TOWERS, NAMINGS, TIMM, Naming
from vit_ipu.weights.native import ModelDescription, is_native, load_native
from vit_ipu.weights.position_embeddings import with_class_position
from vit_ipu.weights.tensor_files import read_tensors
from vit_ipu.weights.timm_configs import read_training_arguments
from vit_ipu.weights.translate import recognise, to_ours, without_prefix


def _nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class Weights:
    """The weights of a complete ViT, by this program's names."""

    source: str
    """The source as the user wrote it."""
    path: Path
    """The file, or the checkpoint of this program, that was read."""
    origin: str
    """`native`, or the naming of the file."""
    tensors: Dict[str, Tensor]
    metadata: WeightsMetadata
    description: Optional[ModelDescription] = None
    """The description in a checkpoint of this program."""

    @property
    def resize_rule(self) -> str:
        return TIMM.resize if self.origin == "native" else NAMINGS[self.origin].resize

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 0 without a head."""
        return len(self.tensors["head.weight"]) if "head.weight" in self.tensors else 0


def read_weights(
    source: str, *, sha256: Optional[str] = None, trust_pickle: bool = False, notify: Notify = _nothing
) -> Weights:
    """Reads a run, a checkpoint, a file, a folder, `hf-hub:owner/name` or an https address.

    `#KEY` after a file chooses one of several state dicts in it, such as `teacher`. `sha256` is the expected hash of
    the file; `trust_pickle` lets a torch with known holes read a pickle. Raises CheckpointError, in one line, if the
    checkpoint is missing, damaged, in an unknown format or not a plain ViT.
    """
    location, part = split_part(source)
    located = locate(location, sha256=sha256, notify=notify)
    path = located.path
    if path.is_dir() and is_native(path):
        if part is not None:
            raise CheckpointError(f"{source}: a checkpoint of this program has no parts: leave out #{part}")
        found = load_native(path, notify=notify)
        metadata = metadata_of(found.description)
        return Weights(source, found.path, "native", found.tensors, metadata, found.description)
    file = weight_file(path) if path.is_dir() else path
    config = read_folder_config(file)
    is_pinned = located.verified and not is_index(file)  # an index is not its shards
    stored = read_tensors(file, trust_pickle=trust_pickle or is_pinned, part=part)
    named = without_prefix(stored.tensors, source)
    naming = recognise(named, source)
    config = read_training_arguments(file, stored.metadata) or _describing(file, config, naming, notify)
    tensors = with_zero_biases(to_ours(named, naming, source))
    if "pos_embed" in tensors:
        tensors["pos_embed"] = with_class_position(tensors["pos_embed"], source)
    require_whole(tensors, naming, source)
    if config is not None:
        with with_remedy(file, config.path):
            require_stated_shape(tensors, config.shape, config.path)
    metadata = read_metadata(file, naming, stored.metadata, config, shape=measured_shape(tensors))
    if naming.flax and any(key.startswith(IMAGE_TOWERS) for key in stored.tensors) and "head.weight" in tensors:
        metadata = replace(metadata, embedding=len(tensors["head.weight"]))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    if naming.flax:
        metadata = metadata.knowing(num_heads=flax_heads(stored.tensors, source))
    return Weights(source, file, naming.name, tensors, metadata)


def _describing(file: Path, config: Optional[FolderConfig], naming: Naming, notify: Notify) -> Optional[FolderConfig]:
    """Returns what the config.json beside a file states, unless it describes the weights of another library."""
    if config is None or has_usual_name(file) or config.naming == naming.name:
        return config
    notify(
        f"note: {config.path} is left out: it describes weights in {config.naming}'s naming, but those of {file.name} "
        f"are in {naming.name}'s"
    )
    return None

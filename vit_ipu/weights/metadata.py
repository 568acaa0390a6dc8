"""Settings that tensors do not show, such as heads and GELU: stated by a file or the user, or assumed and marked so."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from vit_ipu.config_sections.colors import Rgb, rgb_of
from vit_ipu.small_files import parse_json
from vit_ipu.weights.config_values import FolderConfig, damage_is_in, heads, names_in, one_of
from vit_ipu.weights.image_processors import RESAMPLE, Triple, triple
from vit_ipu.weights.mmpretrain_config import stated_in_meta
from vit_ipu.weights.namings import Naming
from vit_ipu.weights.native import ASSUMABLE, ONE_CLASS, ModelDescription, assumed_names, known_problem_type

_METADATA = "vit_ipu"


@dataclass(frozen=True)
class WeightsMetadata:
    """Settings of a model that its tensors do not show; those that nothing states are the defaults of the naming."""

    layer_norm_eps: float
    gelu: str
    mean: Triple
    std: Triple
    num_heads: Optional[int] = None
    """None if nothing states it: `describe.model_config` takes that of a published model of this shape."""
    classes: Tuple[str, ...] = ()
    eval_resize: Optional[int] = None
    """Short side in pixels before the centre crop; the image size when None."""
    interpolation: str = "bilinear"
    eval_crop: str = "center"
    """`center`, or `squash`, which resizes both sides to `eval_resize`."""
    background: Optional[Rgb] = None
    """Colour on which transparent images are laid; None: transparency is dropped."""
    problem_type: str = ONE_CLASS
    """Meaning of the outputs: one of native.PROBLEM_TYPES."""
    embedding: Optional[int] = None
    """Width of the embedding to which the file's head projects the features; None if the head is a classifier."""
    assumed: Tuple[str, ...] = ()
    """Settings, of native.ASSUMABLE, that nothing states."""
    assumed_from: str = ""
    """Library whose defaults the assumed settings are; empty in files of this program, which have only the marks."""

    def knowing(self, **settings: Any) -> WeightsMetadata:
        """Returns the metadata with settings that are stated, and so not assumed any more."""
        known = {field.name for field in fields(self)}
        assumed = tuple(name for name in self.assumed if name not in settings)
        return replace(self, assumed=assumed, **{name: settings[name] for name in settings if name in known})

    def states(self, name: str) -> bool:
        return name not in self.assumed


def metadata_of(description: ModelDescription) -> WeightsMetadata:
    """Returns the metadata of a checkpoint of this program."""
    model, pixels = description.model, description.preprocessing
    return WeightsMetadata(
        layer_norm_eps=model.layer_norm_eps,
        gelu=model.gelu,
        mean=pixels.mean,
        std=pixels.std,
        num_heads=model.num_heads,
        classes=description.classes,
        eval_resize=pixels.eval_resize,
        interpolation=pixels.interpolation,
        eval_crop=pixels.eval_crop,
        background=pixels.background,
        problem_type=description.problem_type,
        assumed=description.assumed,
    )


def read_metadata(
    file: Path, naming: Naming, stored: Dict[str, Any], config: Optional[FolderConfig], *, shape: Mapping[str, int]
) -> WeightsMetadata:
    """Returns the metadata of the weights in `file`, of a model of this `completeness.measured_shape`.

    The sources are, each stronger than the one before: the naming, what `config`'s library fixes, `stored` (what the
    file holds beside its tensors), and what `config` states. Raises CheckpointError if the file's part is damaged.
    """
    assumed = tuple(name for name in ASSUMABLE if name not in naming.fixes)
    side = shape["image_size"]
    pixels = naming.pixels.of_model(width=shape["width"], patch_size=shape["patch_size"], side=side)
    metadata = WeightsMetadata(
        naming.layer_norm_eps,
        naming.gelu,
        pixels.mean,
        pixels.std,
        eval_resize=pixels.eval_resize(side),
        interpolation=pixels.interpolation,
        eval_crop=pixels.eval_crop,
        assumed=assumed,
    )
    if config is not None:
        metadata = metadata.knowing(**config.implied)
    marked: Tuple[str, ...] = ()
    with damage_is_in(file):
        metadata = metadata.knowing(classes=_mmpretrain_classes(stored))
        if naming.name == "mmpretrain":
            metadata = metadata.knowing(**stated_in_meta(stored.get("meta"), shape))
        if isinstance(stored.get(_METADATA), str):
            settings = parse_json(stored[_METADATA])
            marked = assumed_names(settings.get("assumed", []))
            metadata = metadata.knowing(**_own_settings(settings))
    if config is not None:
        metadata = metadata.knowing(**config.stated)
    assumed = tuple(name for name in ASSUMABLE if name in (*metadata.assumed, *marked))
    return replace(metadata, assumed=assumed, assumed_from="" if marked else naming.library)


def file_metadata(description: ModelDescription) -> Dict[str, str]:
    """Returns what a file of this program states beside its tensors, for `read_metadata` to read back."""
    model = description.model
    stated = {"num_heads": model.num_heads, "layer_norm_eps": model.layer_norm_eps, "gelu": model.gelu}
    outputs = {"pooling": "token", "problem_type": description.problem_type}
    pixels, assumed = asdict(description.preprocessing), list(description.assumed)
    return {_METADATA: json.dumps(dict(stated, **outputs, **pixels, assumed=assumed))}


def _own_settings(values: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the settings in a file of this program; files of older versions do not state pooling and pixels."""
    found: Dict[str, Any] = {
        "num_heads": heads(values["num_heads"]),
        "layer_norm_eps": float(values["layer_norm_eps"]),
        "gelu": one_of(values["gelu"], ("erf", "tanh"), "gelu"),
        "problem_type": known_problem_type(values.get("problem_type", ONE_CLASS)),
    }
    if "pooling" in values:
        size = values["eval_resize"]
        found["pooling"] = one_of(values["pooling"], ("token",), "pooling")
        found.update(mean=triple(values["mean"], "mean"), std=triple(values["std"], "std"))
        found["eval_crop"] = one_of(values["eval_crop"], ("center", "squash"), "eval_crop")
        found["eval_resize"] = None if size is None else int(size)
        color = values.get("background")  # files of older versions do not state it
        found["background"] = None if color is None else rgb_of(color)
        found["interpolation"] = one_of(values["interpolation"], tuple(RESAMPLE.values()), "interpolation")
    return found


def _mmpretrain_classes(stored: Dict[str, Any]) -> Tuple[str, ...]:
    meta = stored.get("meta")
    if not isinstance(meta, dict):
        return ()
    return names_in((meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES"))

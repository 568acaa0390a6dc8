"""Reads what a checkpoint's other files and its naming state of its model: heads, epsilon, GELU, classes, pixels."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

from vit_ipu.config import ModelConfig
from vit_ipu.errors import CheckpointError
from vit_ipu.weights.choose import leads_out
from vit_ipu.weights.image_processors import RESAMPLE, Triple, preprocessing, triple
from vit_ipu.weights.namings import Naming
from vit_ipu.weights.native import ONE_CLASS, SEVERAL_CLASSES, ModelDescription, known_problem_type

HIDDEN_ACT = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
"""transformers' names of activations, and this program's."""
_ACT_LAYER = {"gelu": "erf", "gelu_tanh": "tanh", "gelu_erf": "erf"}
"""timm's names of activations, and this program's."""
_METADATA = "vit_ipu"
_MAX_JSON = 16 << 20


@dataclass(frozen=True)
class WeightsMetadata:
    """Settings of a model that its tensors do not show; without other files, the defaults of the naming."""

    layer_norm_eps: float
    gelu: str
    mean: Triple
    std: Triple
    num_heads: Optional[int] = None
    classes: Tuple[str, ...] = ()
    eval_resize: Optional[int] = None
    """Short side in pixels before the centre crop; the image size when None."""
    interpolation: str = "bilinear"
    stated: bool = False
    """Whether the settings come from the checkpoint's own files rather than from the defaults of the naming."""
    eval_crop: str = "center"
    """`center`, or `squash`, which resizes both sides to `eval_resize`."""
    problem_type: str = ONE_CLASS
    """Meaning of the outputs: one of native.PROBLEM_TYPES."""
    embedding: Optional[int] = None
    """Width of the embedding to which the file's head projects the features; None if the head is a classifier."""


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
        stated=True,
        eval_crop=pixels.eval_crop,
        problem_type=description.problem_type,
    )


def read_metadata(file: Path, naming: Naming, stored: Dict[str, Any]) -> WeightsMetadata:
    """Reads the metadata of the weights in `file`.

    The sources are the naming, `stored` (what the file holds beside its tensors), and config.json and
    preprocessor_config.json in the folder of the file. Raises CheckpointError if one of these files cannot be read,
    or describes a model that this program cannot compute.
    """
    usual = WeightsMetadata(naming.layer_norm_eps, naming.gelu, naming.mean, naming.std)
    description, processor = file.parent / "config.json", file.parent / "preprocessor_config.json"
    config = _read_json(description) if _is_of_a_folder(file) else {}
    if "pretrained_cfg" in config or "architecture" in config:
        with _damage_is_in(description):
            return _from_timm(usual, config, description)
    if config.get("model_type") is not None:
        with _damage_is_in(description):
            stated = _from_huggingface(usual, config, description)
        with _damage_is_in(processor):
            return replace(stated, **preprocessing(_read_json(processor), config.get("image_size")))
    with _damage_is_in(file):
        return _from_file(usual, stored, file)


def file_metadata(model: ModelConfig, problem_type: str = ONE_CLASS) -> Dict[str, str]:
    """Returns what a file of this program states beside its tensors, for `read_metadata` to read back."""
    stated = {"num_heads": model.num_heads, "layer_norm_eps": model.layer_norm_eps, "gelu": model.gelu}
    return {_METADATA: json.dumps(dict(stated, problem_type=problem_type))}


@contextmanager
def _damage_is_in(path: Path) -> Iterator[None]:
    """Raises CheckpointError, which names the file at `path`, if the body fails at a value of that file."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def _is_of_a_folder(file: Path) -> bool:
    """Tells whether config.json beside the file describes the file."""
    return file.name.startswith(("model.safetensors", "pytorch_model.bin"))


def _read_json(path: Path) -> Dict[str, Any]:
    if not path.exists():
        return {}
    if not path.is_file() or leads_out(path) or path.stat().st_size > _MAX_JSON:
        raise CheckpointError(f"cannot read {path}: expected a file of at most 16 MiB in that folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"cannot read {path}: it is not a JSON object")
    return values


def _from_file(metadata: WeightsMetadata, stored: Dict[str, Any], path: Path) -> WeightsMetadata:
    """Reads what a file states beside its tensors.

    Such files are written by this program, by timm's train.py, and by mmpretrain and mmclassification.
    """
    ours = stored.get(_METADATA)
    if isinstance(ours, str):
        values = json.loads(ours)
        return replace(
            metadata,
            num_heads=_heads(values["num_heads"]),
            layer_norm_eps=float(values["layer_norm_eps"]),
            gelu=_one_of(values["gelu"], ("erf", "tanh"), "gelu"),
            classes=_mmpretrain_classes(stored),
            stated=True,
            problem_type=known_problem_type(values.get("problem_type", ONE_CLASS)),
        )
    if isinstance(stored.get("arch"), str) and isinstance(stored.get("args"), dict) and "version" in stored:
        return _from_timm(metadata, _timm_config(stored["arch"], stored["args"]), path)
    return replace(metadata, classes=_mmpretrain_classes(stored))


def _timm_config(architecture: str, arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the config.json of the model that timm's train.py was called for, with what its arguments state."""
    model = {"global_pool": arguments.get("gp"), "img_size": arguments.get("img_size")}
    pixels = {name: arguments.get(name) for name in ("mean", "std", "interpolation", "crop_pct")}
    if arguments.get("img_size"):
        pixels["input_size"] = [3, arguments["img_size"], arguments["img_size"]]
    return {
        "architecture": architecture.rpartition("/")[2].partition(".")[0],
        "model_args": dict(_stated(model), **(arguments.get("model_kwargs") or {})),
        "pretrained_cfg": _stated(pixels),
    }


def _stated(values: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", [], ())}


def _from_timm(metadata: WeightsMetadata, config: Dict[str, Any], path: Path) -> WeightsMetadata:
    """Reads the config.json of a folder in timm's format, as on the Hugging Face Hub."""
    pixels, arguments = config.get("pretrained_cfg") or {}, config.get("model_args") or {}
    pooling = arguments.get("global_pool", config.get("global_pool") or "token")
    if pooling != "token":
        raise CheckpointError(f"{path}: its global_pool is {pooling}, not the class token")
    if "norm_layer" in arguments:
        raise CheckpointError(f"{path}: its norm_layer {arguments['norm_layer']} is not known")
    _require_square(arguments.get("img_size"), path)
    found: Dict[str, Any] = {"stated": True}
    if "act_layer" in arguments:
        activation = arguments["act_layer"]
        found["gelu"] = _ACT_LAYER[_one_of(activation, tuple(_ACT_LAYER), "act_layer")]
    if "num_heads" in arguments:
        found["num_heads"] = _heads(arguments["num_heads"])
    if "mean" in pixels and "std" in pixels:
        found.update(mean=triple(pixels["mean"]), std=triple(pixels["std"]))
    if pixels.get("interpolation") in RESAMPLE.values():
        found["interpolation"] = pixels["interpolation"]
    if "crop_pct" in pixels and "input_size" in pixels:
        found["eval_resize"] = math.floor(pixels["input_size"][-1] / pixels["crop_pct"])
    if pixels.get("crop_mode") == "squash":  # timm.data.transforms_factory: both sides, then the centre
        found["eval_crop"] = "squash"
    names = config.get("label_names") or pixels.get("label_names")
    return replace(metadata, classes=_names(names), **found)


def _from_huggingface(metadata: WeightsMetadata, config: Dict[str, Any], path: Path) -> WeightsMetadata:
    if config["model_type"] != "vit":
        raise CheckpointError(f"{path}: its model_type is {config['model_type']}, not vit")
    activation = config.get("hidden_act", "gelu")
    if activation not in HIDDEN_ACT:
        raise CheckpointError(f"{path}: its hidden_act {activation} is not one of {', '.join(sorted(HIDDEN_ACT))}")
    _require_square(config.get("image_size"), path)
    names = config.get("id2label") or {}
    missing = [label for label in range(len(names)) if str(label) not in names]
    if missing:
        raise CheckpointError(f"{path}: its id2label has no label {missing[0]}")
    return replace(
        metadata,
        num_heads=_heads(config.get("num_attention_heads", 12)),
        layer_norm_eps=float(config.get("layer_norm_eps", metadata.layer_norm_eps)),
        gelu=HIDDEN_ACT[activation],
        stated=True,
        classes=tuple(str(names[str(label)]) for label in range(len(names))),
        problem_type=_problem_type(config, len(names)),
    )


def _problem_type(config: Dict[str, Any], num_classes: int) -> str:
    """Returns the kind of outputs; if it is not stated, a single output is a probability by itself, as in transformers.

    The source is transformers' ImageClassificationPipeline.postprocess.
    """
    stated = config.get("problem_type")
    if stated is None:
        return SEVERAL_CLASSES if num_classes == 1 else ONE_CLASS
    return known_problem_type(stated)


def _mmpretrain_classes(metadata: Dict[str, Any]) -> Tuple[str, ...]:
    meta = metadata.get("meta")
    if not isinstance(meta, dict):
        return ()
    return _names((meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES"))


def _names(values: Any) -> Tuple[str, ...]:
    return tuple(str(name) for name in values) if isinstance(values, (list, tuple)) else ()


def _heads(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value} attention heads")
    return value


def _one_of(value: Any, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"its {what} {value} is not one of {', '.join(known)}")
    return str(value)


def _require_square(size: Any, path: Path) -> None:
    if isinstance(size, (list, tuple)) and len(set(size)) > 1:
        sides = " x ".join(map(str, size))
        raise CheckpointError(f"{path}: its images are {sides} pixels, but only square images are supported")

"""Text of a config to start from: a folder of images, and weights to fine-tune or a small model from random weights.

Every number is a starting point that trains, not a measured optimum. `config_text` is a pure function; `vit_ipu.init`
looks at the folder and at the weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from vit_ipu.config import DataConfig, ModelConfig
from vit_ipu.config_file import yaml_value
from vit_ipu.config_sections.colors import COLORS, Rgb, color_value
from vit_ipu.text import counted
from vit_ipu.variants import VARIANTS
from vit_ipu.weights.native import Preprocessing

IPUS = ("ipu", "ipu-sim")
"""Kinds of device that need a pipeline."""
_MICRO_BATCH = 8
_BATCHES = ((100_000, 512), (20_000, 256), (640, 64), (160, 32), (80, 16), (0, 8))
"""Smallest number of training images for each global batch."""
_UPDATES = {True: {"cpu": 150, "other": 400}, False: {"cpu": 1000, "other": 2000}}
"""Weight updates to aim at, if few images would make fewer: with weights to start from, and without."""
_EPOCHS = {True: (5, 30), False: (20, 200)}
"""Fewest and most epochs, with weights to start from, and without."""
_MOST_WORKERS = 16
_SCRATCH = ((160, 224, 16), (80, 96, 8), (40, 64, 8), (0, 32, 4))
"""Smallest short side of the images, image size and patch size of a model from random weights."""


@dataclass(frozen=True)
class Pictures:
    """Images to train on."""

    path: str
    """Folder, as `data.path` names it."""
    num_classes: int
    num_train: int
    short_side: int
    """Median short side in pixels."""
    holdout: Optional[float] = None
    num_unreadable: int = 0
    num_transparent: int = 0


@dataclass(frozen=True)
class StartingWeights:
    """Weights to fine-tune."""

    source: str
    """File, folder or address, as `model.init` names it."""
    model: ModelConfig
    pixels: Preprocessing
    sha256: Optional[str] = None
    assumed: Tuple[str, ...] = ()
    """Settings, of native.ASSUMABLE, that nothing states."""

    def reason_for(self, setting: str, verb: str) -> str:
        """Returns the comment on a setting that is taken from the weights."""
        return "assumed: the weights do not state it" if setting in self.assumed else f"as the weights {verb}"


class _Line(NamedTuple):
    """A key of a config, and the comment behind it."""

    key: str
    value: Any
    comment: str = ""


def config_text(pictures: Pictures, weights: Optional[StartingWeights], kind: str) -> str:
    """Returns the YAML of the sections of a config for a kind of device: cpu, cuda, ipu or ipu-sim."""
    shape = model_shape(pictures, weights)
    batch = _global_batch(pictures.num_train, kind, shape["depth"])
    sections = {
        "model": _model(pictures, weights, shape, kind),
        "data": _data(pictures, weights, kind),
        "pipeline": _pipeline(shape["depth"], batch, kind),
        "precision": _precision(kind),
        "optim": _optim(pictures.num_train, weights, batch, kind),
        "run": _run(pictures.num_train, weights, batch, kind),
    }
    return "\n".join(_section(name, lines) for name, lines in sections.items() if lines)


def _section(name: str, lines: List[_Line]) -> str:
    text = f"{name}:\n"
    for line in lines:
        text += f"  {line.key}: {yaml_value(line.value)}{f'  # {line.comment}' if line.comment else ''}\n"
    return text


# ------------------------------------------------------------------------------------------ sections


def model_shape(pictures: Pictures, weights: Optional[StartingWeights]) -> Dict[str, int]:
    """Returns width, depth, num_heads, patch_size and image_size: those of the weights, or of a small model."""
    if weights is not None:
        return {key: getattr(weights.model, key) for key in (*VARIANTS["vit_test"], "image_size")}
    _, image_size, patch_size = next(row for row in _SCRATCH if pictures.short_side >= row[0])
    return dict(VARIANTS["vit_tiny_patch16"], patch_size=patch_size, image_size=image_size)


def _model(pictures: Pictures, weights: Optional[StartingWeights], shape: Dict[str, int], kind: str) -> List[_Line]:
    lines = _shape_lines(shape)
    if weights is not None and weights.model.mlp_ratio != 4:
        lines.append(_Line("mlp_ratio", weights.model.mlp_ratio))
    if shape["image_size"] != 224:
        lines.append(_Line("image_size", shape["image_size"], "pixels of a side"))
    lines.append(_Line("num_classes", pictures.num_classes))
    if kind in IPUS:
        lines.append(_Line("gelu", "tanh", "the only form that IPUs compute"))
    elif weights is not None and weights.model.gelu != "erf":
        lines.append(_Line("gelu", weights.model.gelu, weights.reason_for("gelu", "have")))
    epsilon = 1e-6 if weights is None else weights.model.layer_norm_eps
    if epsilon != 1e-6 and not (kind in IPUS and epsilon < 1e-6):
        lines.append(_Line("layer_norm_eps", epsilon))
    if weights is not None:
        lines.append(_Line("init", weights.source, "weights to start from; their head is replaced"))
        lines += [_Line("init_sha256", weights.sha256)] if weights.sha256 else []
    return lines


def _shape_lines(shape: Dict[str, int]) -> List[_Line]:
    """Returns the variant with this shape, or the numbers themselves."""
    numbers = {key: shape[key] for key in VARIANTS["vit_test"]}
    for name, values in VARIANTS.items():
        if values == numbers:
            return [_Line("variant", name)]
    return [_Line(key, value) for key, value in numbers.items()]


def _data(pictures: Pictures, weights: Optional[StartingWeights], kind: str) -> List[_Line]:
    lines = [_Line("source", "imagefolder"), _Line("path", pictures.path)]
    if pictures.holdout is not None:
        lines.append(_Line("holdout", pictures.holdout, "share of each class that is held out for evaluation"))
    lines.append(_Line("crop_scale", [0.4, 1.0], "smallest and largest random crop, as shares of the image"))
    if weights is not None:
        lines += _pixel_lines(weights)
    background = background_of(pictures, weights)
    if background is not None:
        expected = weights is not None and weights.pixels.background is not None
        comment = "as the weights expect" if expected else "pictures are laid on it where they are transparent"
        lines.append(_Line("background", color_value(background), comment))
    if kind != "cpu":
        workers = min(os.cpu_count() or 1, _MOST_WORKERS)
        lines.append(_Line("num_workers", workers, "processes that load images: at most one a core"))
    if pictures.num_unreadable:
        lines.append(_Line("on_error", "skip", "leaves out images that cannot be read, and names them"))
    return lines


def background_of(pictures: Pictures, weights: Optional[StartingWeights]) -> Optional[Rgb]:
    """Returns the colour on which pictures are laid: that of the weights, or white if pictures have transparency."""
    if weights is not None and weights.pixels.background is not None:
        return weights.pixels.background
    return COLORS["white"] if pictures.num_transparent else None


def _pixel_lines(weights: StartingWeights) -> List[_Line]:
    """Returns how the weights expect pixels, as far as it differs from the defaults."""
    pixels, fields = weights.pixels, DataConfig.model_fields
    values: Dict[str, Any] = {
        "eval_resize": pixels.eval_resize,
        "eval_crop": pixels.eval_crop,
        "interpolation": pixels.interpolation,
        "mean": pixels.mean,
        "std": pixels.std,
    }
    if (pixels.eval_resize or 0) <= weights.model.image_size:
        del values["eval_resize"]
    return [
        _Line(key, list(value) if isinstance(value, tuple) else value, weights.reason_for(key, "expect"))
        for key, value in values.items()
        if value != fields[key].default
    ]


def _pipeline(depth: int, batch: int, kind: str) -> List[_Line]:
    if kind not in IPUS:
        return [] if batch == 64 else [_Line("global_batch_size", batch, "images per weight update")]
    return [
        _Line("global_batch_size", batch, "images per weight update"),
        _Line("micro_batch_size", _MICRO_BATCH, "images that pass through an IPU at a time"),
        _Line("layers_per_ipu", layers_per_ipu(depth), "blocks on each IPU of one pipeline"),
        _Line("recompute", "every_block", "saves the memory of activations"),
        _Line("available_memory_proportion", 0.3),
        _Line("executable_cache", "cache", "folder that keeps compiled programs"),
    ]


def layers_per_ipu(depth: int) -> List[int]:
    """Returns the blocks on each of 4 IPUs, or of 2 or 1 if there are fewer blocks; the middle IPUs take more."""
    ipus = 4 if depth >= 4 else 2 if depth >= 2 else 1
    counts, extra = [depth // ipus] * ipus, depth % ipus
    for index in [1, 2, 0, 3][:extra] if ipus == 4 else range(extra):
        counts[index] += 1
    return counts


def _precision(kind: str) -> List[_Line]:
    if kind not in IPUS:
        return []
    return [
        _Line("stochastic_rounding", True),
        _Line("loss_scale", 128.0, "lower it if training overflows float16"),
    ]


def _optim(num_train: int, weights: Optional[StartingWeights], batch: int, kind: str) -> List[_Line]:
    updates = _num_updates(num_train, weights, batch, kind)
    base = 1e-4 if weights is not None else 5e-4
    return [
        _Line("optimizer", "adamw"),
        _Line("learning_rate", float(f"{base * sqrt(batch / 64):.2g}"), "the first value to try others of"),
        _Line("weight_decay", 0.05),
        _Line("max_grad_norm", 1.0),
        _Line("label_smoothing", 0.1),
        _Line("warmup_updates", max(updates // 20, 1), f"of about {updates:,}"),
    ]


def _run(num_train: int, weights: Optional[StartingWeights], batch: int, kind: str) -> List[_Line]:
    epochs, each = _num_epochs(num_train, weights, batch, kind), max(num_train // batch, 1)
    every = each * ceil(epochs / 10)
    return [
        _Line("epochs", epochs, f"passes over {counted(num_train, 'image')}"),
        _Line("evaluate_every", every, f"updates; an epoch has {counted(each, 'update')}"),
        _Line("keep_best", "top1", "keeps the checkpoint of the best evaluation, too"),
    ]


# ------------------------------------------------------------------------------------------- numbers


def _global_batch(num_train: int, kind: str, depth: int) -> int:
    batch = next(size for least, size in _BATCHES if num_train >= least)
    if kind not in IPUS:
        return batch
    stages = 2 * len(layers_per_ipu(depth)) - 1  # a pipeline needs as many micro-batches as it has stages
    return max(batch, 8 * ceil(stages / 8) * _MICRO_BATCH)


def _num_epochs(num_train: int, weights: Optional[StartingWeights], batch: int, kind: str) -> int:
    has_weights = weights is not None
    target = _UPDATES[has_weights]["cpu" if kind == "cpu" else "other"]
    fewest, most = _EPOCHS[has_weights]
    return min(max(ceil(target * batch / num_train), fewest), most)


def _num_updates(num_train: int, weights: Optional[StartingWeights], batch: int, kind: str) -> int:
    return max(_num_epochs(num_train, weights, batch, kind) * num_train // batch, 1)


def describe_shape(shape: Dict[str, int]) -> Tuple[str, str]:
    """Returns the name of a shape, or its numbers, and its image size, for people."""
    lines = _shape_lines(shape)
    name = str(lines[0].value) if len(lines) == 1 else ", ".join(f"{line.key} {line.value}" for line in lines)
    return name, f"{shape['image_size']} px"

"""Predictions of a checkpoint for image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence, Tuple

from vit_ipu.backends import Device, open_backend
from vit_ipu.checkpoints.run_state import find_checkpoint, load_description, load_weights
from vit_ipu.config import Config
from vit_ipu.data.loader import stack_images
from vit_ipu.data.sources import open_image
from vit_ipu.data.transforms import EvalTransform
from vit_ipu.pipeline import require_runnable


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first."""

    path: str
    classes: Tuple[Tuple[str, float], ...]
    """Names with probabilities in [0, 1]."""


def predict(checkpoint: Path, images: Sequence[str], device: Device, *, top: int = 5) -> List[Prediction]:
    """Classifies image files of any size. Raises UserError for a missing checkpoint or image."""
    checkpoint = find_checkpoint(checkpoint)
    description = load_description(checkpoint)
    config = _for_device(description.config, device)
    require_runnable(config, device.kind)
    transform = EvalTransform(config.data, config.model.image_size)
    pixels = [transform(open_image(path)) for path in images]
    with open_backend(config, device) as backend:
        backend.load_state_dict({"model": load_weights(checkpoint)})
        probabilities = backend.predict(stack_images(pixels, config.data)).softmax(dim=1)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    names = description.classes
    return [
        Prediction(path, tuple((names[label], value) for label, value in zip(labels, values)))
        for path, labels, values in zip(images, best.indices.tolist(), best.values.tolist())
    ]


def _for_device(config: Config, device: Device) -> Config:
    """The config with a number format that a CPU or GPU has, whatever it was trained in."""
    if device.kind not in ("cpu", "cuda"):
        return config
    return config.model_copy(update={"precision": config.precision.model_copy(update={"compute": "auto"})})

"""Predictions of a checkpoint for image files."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Device
from vit_ipu.config import Config, ModelConfig
from vit_ipu.config_file import parse_config
from vit_ipu.data.images.image_file import open_picture
from vit_ipu.data.images.transforms import EvalTransform
from vit_ipu.data.loading.loader import CHUNK, stack_images
from vit_ipu.data.sources.dark_images import dark_image_note
from vit_ipu.data.sources.image_list import ImageList, find_images
from vit_ipu.errors import CheckpointError, ConfigError, RunFailed, UserError
from vit_ipu.text import Notify
from vit_ipu.weights.describe import assumptions, describe, with_heads
from vit_ipu.weights.fit import load_weights
from vit_ipu.weights.native import REGRESSION, SEVERAL_CLASSES, ModelDescription
from vit_ipu.weights.read import read_weights

OnError = Callable[[str, UserError], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first.

    The probabilities sum to 1 over all classes, unless the model was trained with a binary cross-entropy (optim.loss
    bce), or for images of several classes: then each is the sigmoid of its output, by itself.
    """

    path: str
    classes: Tuple[Tuple[str, float], ...]
    """Class names with probabilities in [0, 1]."""


def predict(
    checkpoint: str,
    images: Sequence[str],
    device: Device,
    *,
    top: int = 5,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    on_error: Optional[OnError] = None,
    notify: Notify = lambda text: None,
) -> List[Prediction]:
    """Classifies image files, and all images below folders, as `predictions` does."""
    options = {"trust_pickle": trust_pickle, "num_heads": num_heads, "on_error": on_error}
    return list(predictions(checkpoint, find_images(images, notify), device, top=top, notify=notify, **options))  # type: ignore[arg-type]


def require_top(top: int) -> None:
    """Raises UserError unless `top` is a number of classes to name."""
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise UserError(f"top {top!r}: give the number of classes to name for each image, 1 or more")


def predictions(
    checkpoint: str,
    images: ImageList,
    device: Device,
    *,
    top: int = 5,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    on_error: Optional[OnError] = None,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done: None,
) -> Iterator[Prediction]:
    """Classifies image files of any size by a checkpoint of this program or of another one, a few hundred at a time.

    The `top` most probable classes of each image are given, and `progress` receives the number of images that were
    read. An image that cannot be read has no prediction: `on_error` receives its path and the UserError. Without
    `on_error` the UserError is raised. `num_heads` are the attention heads of weights that do not state them; `notify`
    receives a note on settings that had to be assumed. On IPUs GELU is computed in its tanh form, also for a model that
    was trained with erf GELU, which is noted.
    """
    require_top(top)
    weights = with_heads(read_weights(checkpoint, trust_pickle=trust_pickle, notify=notify), num_heads)
    description = describe(weights)
    to_probabilities = _activation(description, checkpoint)
    config = _for_device(inference_config(description, weights.path), device, len(images))
    for note in assumptions(weights, description) + _changes_for(device, description.model, config.model):
        notify(f"note: {note}")
    require_runnable_on(config, device, training=False, allow_synthetic=True)
    readable = _read_images(images, config, on_error, notify, progress)
    first = next(readable, None)
    if first is None:
        return
    with open_backend(config, device) as backend:
        load_weights(backend, weights)
        size = -(-CHUNK // backend.samples_per_call) * backend.samples_per_call
        for paths, pixels in _chunks(itertools.chain([first], readable), size):
            probabilities = to_probabilities(backend.predict(stack_images(pixels, config.data)))
            if not probabilities.isfinite().all():
                raise RunFailed(
                    f"the outputs of {checkpoint} are not finite: its weights are damaged, or have diverged; take an "
                    "earlier checkpoint"
                )
            yield from _best(paths, probabilities, description.classes, top)


def _read_images(
    images: ImageList, config: Config, on_error: Optional[OnError], notify: Notify, progress: Progress
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yields the path and the pixels (3, S, S) uint8 of each image that can be read; notes the first dark one."""
    transform = EvalTransform(config.data, config.model.image_size)
    is_dark_noted = False
    for done, path in enumerate(images, 1):
        try:
            picture = open_picture(path).on(config.data.background_rgb)
            pixels = transform(picture)
            dark = None if is_dark_noted else dark_image_note(picture)
        except UserError as error:
            if on_error is None:
                raise
            on_error(path, error)
        else:
            if dark is not None:
                notify(dark)
                is_dark_noted = True
            yield path, pixels
        progress(done)


def _chunks(
    readable: Iterator[Tuple[str, np.ndarray]], size: int
) -> Iterator[Tuple[Tuple[str, ...], Tuple[np.ndarray, ...]]]:
    """Yields the paths and the pixels of `size` images at a time; the last time, of those that are left."""
    while True:
        chunk = list(itertools.islice(readable, size))
        if not chunk:
            return
        paths, pixels = zip(*chunk)
        yield paths, pixels


def _best(paths: Sequence[str], probabilities: Tensor, names: Sequence[str], top: int) -> Iterator[Prediction]:
    """Yields the `top` most probable classes of each image, of probabilities (N, K)."""
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    for path, labels, values in zip(paths, best.indices.tolist(), best.values.tolist()):
        yield Prediction(path, tuple((names[label], value) for label, value in zip(labels, values)))


def _activation(description: ModelDescription, checkpoint: str) -> Callable[[Tensor], Tensor]:
    """Returns the function from logits (N, K) to probabilities. Raises UserError if the outputs are not classes."""
    if description.problem_type == REGRESSION:
        raise UserError(
            f"{checkpoint}: its outputs are values (problem_type regression), not probabilities of classes: convert it "
            "--to huggingface or onnx, and run it there"
        )
    if description.problem_type == SEVERAL_CLASSES:
        return torch.sigmoid
    if description.model.num_classes == 1 and description.trained is None:
        raise UserError(
            f"{checkpoint}: its head has one output, for which softmax is 1 whatever the image: state the problem_type "
            "in a config.json of Hugging Face"
        )
    return lambda logits: logits.softmax(dim=1)


def inference_config(description: ModelDescription, path: Path) -> Config:
    """Returns the config of the run that trained the model; for converted weights, a config for inference only.

    In a config for inference only, the sections on training are placeholders. Raises CheckpointError, which names the
    weights at `path`, if the described preprocessing is not possible.
    """
    if description.trained is not None:
        return description.trained.config
    values = {
        "model": description.model.model_dump(),
        "data": dict(asdict(description.preprocessing), source="imagefolder"),
        "pipeline": {"global_batch_size": 1, "micro_batch_size": 1},
        "optim": {"optimizer": "sgd", "learning_rate": 0.01},
        "run": {"updates": 1},
    }
    try:
        return parse_config(values)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: {error}; correct the config.json or preprocessor_config.json that states it"
        ) from None


def _for_device(config: Config, device: Device, num_images: int) -> Config:
    """Returns the config with a number format, a form of GELU and an epsilon that the device supports.

    IPUs get the fewest device iterations if these are enough for all images, rather than a call of mostly padding.
    """
    if device.kind in ("cpu", "cuda"):
        return config.model_copy(update={"precision": config.precision.model_copy(update={"compute": "auto"})})
    epsilon = max(config.model.layer_norm_eps, 1e-6)  # Hugging Face's 1e-12 would be 0 in float16
    model = config.model.model_copy(update={"gelu": "tanh", "layer_norm_eps": epsilon})
    return short_calls(config.model_copy(update={"model": model}), num_images)


def short_calls(config: Config, num_images: int) -> Config:
    """Returns the config with as many device iterations as stages if one such call takes all images."""
    pipeline = config.for_evaluation().pipeline
    stages = len(config.for_evaluation().layers_per_ipu)
    if num_images > stages * pipeline.micro_batch_size * pipeline.replication_factor:
        return config
    iterations = config.run.evaluation_device_iterations or stages
    return config.model_copy(update={"run": config.run.model_copy(update={"evaluation_device_iterations": iterations})})


def _changes_for(device: Device, before: ModelConfig, now: ModelConfig) -> List[str]:
    """Returns a note on each setting of the model that the device cannot compute as it was trained."""
    compared = (("gelu", before.gelu, now.gelu), ("layer_norm_eps", before.layer_norm_eps, now.layer_norm_eps))
    return [
        f"{key} is {new} on {device.name}, but the model was trained with {old}"
        for key, old, new in compared
        if old != new
    ]

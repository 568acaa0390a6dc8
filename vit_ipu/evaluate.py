"""Evaluation: top-1, top-5 and mean loss over every held-out image, each exactly once."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vit_ipu.backends.build import open_backend, require_runnable_on
from vit_ipu.backends.contract import Backend, Device, HostBatch
from vit_ipu.config import Config
from vit_ipu.config_sections.colors import color_text
from vit_ipu.data.loading.loader import EvaluationLoader
from vit_ipu.data.sources.base import Source
from vit_ipu.data.sources.listing import ListingCache
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import RunFailed, UserError
from vit_ipu.scores import Scores, per_class
from vit_ipu.text import Notify
from vit_ipu.weights.describe import assumptions_of_config, require_classifier, with_heads
from vit_ipu.weights.fit import differing_settings, load_weights, require_heads
from vit_ipu.weights.metadata import WeightsMetadata
from vit_ipu.weights.native import ONE_CLASS, SEVERAL_CLASSES, ModelDescription
from vit_ipu.weights.read import Weights, read_weights

_NONE_READABLE = "there is no held-out image that can be read: replace the images, or evaluate on others"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss that an evaluation measured."""

    top1: float
    """Percentage of images whose class has the highest logit."""
    top5: float
    """Percentage of images whose class is among the five highest logits, or among all logits if there are fewer."""
    loss: float
    """Mean loss in nats, without smoothing, mixing and class weights: cross-entropy, or the binary one (optim.loss)."""
    num_images: int
    confusion: Optional[Tensor] = field(default=None, compare=False, repr=False)
    """Numbers of images (K, K), by class and by predicted class; None for many classes, or if read from a file."""
    scores: Optional[Scores] = field(default=None, compare=False, repr=False)
    """Predictions for the images that this process has evaluated: all, but under torchrun."""

    @property
    def figures(self) -> Dict[str, Any]:
        """The figures as values for JSON."""
        return {name: getattr(self, name) for name in ("top1", "top5", "loss", "num_images")}


@dataclass(frozen=True)
class CheckpointEvaluation:
    """Evaluation of a checkpoint, with the images that were skipped."""

    evaluation: Evaluation
    source: Source
    """The held-out images."""
    checkpoint: Path
    """Path of the weights file, or of the run's checkpoint, that was read."""
    skipped: Tuple[str, ...]
    """Images that could not be read, each with the reason."""

    @property
    def top1(self) -> float:
        """Percentage of images whose class has the highest logit."""
        return self.evaluation.top1

    @property
    def top5(self) -> float:
        """Percentage of images whose class is among the five highest logits, or all logits if there are fewer."""
        return self.evaluation.top5

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return self.evaluation.loss

    @property
    def num_images(self) -> int:
        """Number of images that were evaluated."""
        return self.evaluation.num_images

    @property
    def confusion(self) -> Optional[List[List[int]]]:
        """Numbers of images by class and by predicted class; None for many classes."""
        confusion = self.evaluation.confusion
        return None if confusion is None else confusion.tolist()

    @property
    def per_class(self) -> Optional[List[Dict[str, Any]]]:
        """Name (`class`), number of images and top-1 in per cent of each class; None for many classes.

        The top-1 of a class without images is None.
        """
        confusion = self.evaluation.confusion
        if confusion is None:
            return None
        return [
            {"class": name, "num_images": images, "top1": 100 * correct / images if images else None}
            for name, (images, correct) in zip(self.source.classes, per_class(confusion))
        ]


def evaluate(
    config: Config,
    device: Device,
    checkpoint: str,
    *,
    trust_pickle: bool = False,
    num_heads: Optional[int] = None,
    cache: Optional[ListingCache] = None,
    notify: Notify = lambda text: None,
) -> CheckpointEvaluation:
    """Evaluates a run, a checkpoint or weights in any known naming on the held-out images, each exactly once.

    `num_heads` are the weights' attention heads, if they do not state them. `notify` receives a note on the settings
    that the weights do not state, and on each setting that differs from their training. Raises UserError if the
    weights belong to another model or to other classes.
    """
    require_runnable_on(config, device, training=False)
    weights = with_heads(read_weights(checkpoint, trust_pickle=trust_pickle, notify=notify), num_heads)
    source = open_source(config.data, config.model, "eval", cache=cache)
    for note in compare_with_training(weights, config, source.classes):
        notify(f"note: {note}")
    with open_backend(config, device) as backend:
        load_weights(backend, weights)
        loader = evaluation_loader(source, config, backend)
        with closing(iter(loader)) as batches:
            evaluation = evaluate_batches(backend, batches, loss=config.optim.loss)
    return CheckpointEvaluation(evaluation, source, weights.path, tuple(loader.skipped))


def evaluation_loader(source: Source, config: Config, backend: Backend) -> EvaluationLoader:
    """Returns the loader of the images that this process predicts, in chunks that `backend` predicts without padding.

    These are all images of the source, except under torchrun, whose processes share them out.
    """
    instances = backend.instances
    part = (0, 1) if instances.are_replicas else (instances.index, instances.count)
    return EvaluationLoader(
        source,
        config,
        multiple_of=backend.samples_per_call,
        sends_first=backend.blocks_threads,
        float_format=backend.float_format,
        part=part,
    )


def compare_with_training(weights: Weights, config: Config, classes: Sequence[str]) -> List[str]:
    """Returns notes on settings that the weights do not state, and on those that differ from the weights' training.

    Raises UserError if the weights belong to another model, or to other classes than the images.
    """
    require_classifier(weights)
    _require_one_class(weights, config)
    notes = assumptions_of_config(weights, config.model, config.data)
    if weights.description is not None:
        return notes + differences_from(weights.description, config, classes)
    require_heads(weights, config)
    return notes + differing_settings(weights, config) + _differing_pixels(weights.metadata, config)


def _require_one_class(weights: Weights, config: Config) -> None:
    """Raises UserError if images may have several classes, or none; sigmoids alone do not tell, so a run does."""
    outputs, trained = weights.metadata.problem_type, weights.description and weights.description.trained
    if outputs == ONE_CLASS or trained or (outputs == SEVERAL_CLASSES and config.optim.loss == "bce"):
        return
    remedy = "; if each image has one class, set optim.loss: bce" if outputs == SEVERAL_CLASSES else ""
    raise UserError(
        f"{weights.source} was trained for {outputs}, for which top-1 and top-5 make no sense: evaluate it with the "
        f"program that trained it{remedy}"
    )


def _differing_pixels(stated: WeightsMetadata, config: Config) -> List[str]:
    """Returns notes on how images are resized and cropped otherwise than the weights state, or their library does."""
    data, side = config.data, config.model.image_size
    compared = (
        ("eval_resize", data.eval_resize or side, stated.eval_resize or side),
        ("interpolation", data.interpolation, stated.interpolation),
        ("eval_crop", data.eval_crop, stated.eval_crop),
        ("background", color_text(data.background_rgb), color_text(stated.background)),
    )
    known, usual = "the weights were evaluated with", "weights of their naming usually have"
    return [
        f"data.{name} is {now}, but {known if stated.states(name) else usual} {before}"
        for name, now, before in compared
        if now != before
    ]


def differences_from(trained: ModelDescription, config: Config, classes: Sequence[str]) -> List[str]:
    """Returns notes on settings that differ from those that a checkpoint of this program was trained with.

    Raises UserError if the checkpoint belongs to another model, or to other classes than the images.
    """
    model, data, pixels = config.model, config.data, trained.preprocessing
    if model.num_heads != trained.model.num_heads and "num_heads" not in trained.assumed:
        raise UserError(
            f"the checkpoint was trained with model.num_heads {trained.model.num_heads}, but the config has "
            f"{model.num_heads}: use the config that the checkpoint was trained with"
        )
    # Converted weights are left out, because other programs may name the same classes differently.
    for ours, theirs in zip(classes, trained.classes) if trained.trained else ():
        if ours != theirs:
            raise UserError(
                f"the checkpoint was trained on the class {theirs}, but the images have {ours} in its place: evaluate "
                "on images of the same classes"
            )
    loss = None if trained.trained is None else trained.trained.config.optim.loss
    # Settings that change what a model computes, but no shape of a tensor, and that an evaluation may choose.
    compared = (
        ("model.gelu", model.gelu, trained.model.gelu),
        ("model.layer_norm_eps", model.layer_norm_eps, trained.model.layer_norm_eps),
        ("data.mean", data.mean, pixels.mean),
        ("data.std", data.std, pixels.std),
        ("data.eval_resize", data.eval_resize, pixels.eval_resize),
        ("data.interpolation", data.interpolation, pixels.interpolation),
        ("data.eval_crop", data.eval_crop, pixels.eval_crop),
        ("data.background", color_text(data.background_rgb), color_text(pixels.background)),
        ("optim.loss", config.optim.loss, config.optim.loss if loss is None else loss),
    )
    known, guessed = "the checkpoint was trained with", "its conversion assumed"
    return [
        f"{key} is {now}, but {guessed if key.partition('.')[2] in trained.assumed else known} {before}"
        for key, now, before in compared
        if now != before
    ] + _other_holdout(trained, config)


def _other_holdout(trained: ModelDescription, config: Config) -> List[str]:
    """Returns a note if the run that trained the checkpoint held out another share of the images."""
    before = None if trained.trained is None else trained.trained.config.data.holdout
    now = config.data.holdout
    if now is None or before == now or trained.trained is None:
        return []
    known = "null" if before is None else before
    return [f"data.holdout is {now}, but was {known} in training: some of these images may have been trained on"]


def evaluate_batches(backend: Backend, batches: Iterable[HostBatch], *, loss: str = "cross_entropy") -> Evaluation:
    """Predicts each batch and counts the hits. Backends pad batches as their devices need; padding is not counted.

    `loss` is the optim.loss that the model is trained with, which decides about probabilities and losses. The processes
    of torchrun add what they have counted. Raises RunFailed if the model's outputs are not finite, or if no image can
    be read.
    """
    parts, count = [], 0
    for batch in batches:
        indices = torch.arange(count, count + len(batch)) if batch.indices is None else batch.indices
        parts.append(Scores.of(indices, backend.predict(batch.images), batch.labels, loss=loss))
        count += len(batch)
    if not parts:
        raise RunFailed(_NONE_READABLE)
    scores = Scores.joined(parts)
    totals, confusion = _totals(scores), scores.confusion
    if not backend.instances.are_replicas:
        totals = backend.instances.sum(totals)
        confusion = None if confusion is None else backend.instances.sum(confusion.double()).round().long()
    top1, top5, images, sum_of_losses = totals.tolist()
    if not images:
        raise RunFailed(_NONE_READABLE)
    if not math.isfinite(sum_of_losses):
        raise RunFailed(
            "the model's outputs are not finite: its weights are damaged, or have diverged; take an earlier checkpoint"
        )
    count = round(images)
    figures = (100 * round(top1) / count, 100 * round(top5) / count, sum_of_losses / count, count)
    return Evaluation(*figures, confusion, scores)


def _totals(scores: Scores) -> Tensor:
    """Returns the numbers of images that are right, among the best five, and there, and the sum of losses (4,)."""
    counts = (scores.predicted == scores.labels).sum(), scores.in_top5.sum(), len(scores), scores.losses.sum()
    return torch.tensor([float(count) for count in counts], dtype=torch.float64)

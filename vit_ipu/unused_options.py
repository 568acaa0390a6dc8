"""Notes on options that a config sets but its run does not read."""

from __future__ import annotations

from typing import List

from vit_ipu.config import Config, DataConfig

# Options that only some optimizers read; a note reports one that is set for another optimizer.
_READ_BY = {
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw", "lamb"),
    "eps": ("adam", "adamw", "lamb"),
    "max_weight_norm": ("lamb",),
    "exempt_max_weight_norm": ("lamb",),
}

_WITHOUT_FILES = ("sample", "fashion_mnist", "cifar10", "cifar100", "generated")
"""Sources whose images have no transparency."""


def unused_options(config: Config, *, training: bool = True) -> List[str]:
    """Returns notes on options that the config sets but this run does not read.

    Without `training`, the weights are given, so that nothing is noted of model.init.
    """
    notes = [
        f"optim.{name} has no effect with {config.optim.optimizer}"
        for name, readers in _READ_BY.items()
        if name in config.optim.model_fields_set and config.optim.optimizer not in readers
    ]
    if config.optim.use_combined_accum:
        notes += [
            f"precision.{name} has no effect with optim.use_combined_accum"
            for name in ("accumulation", "first_moment")
            if name in config.precision.model_fields_set
        ]
    pipelined = config.pipeline.execution == "pipelined" and len(config.layers_per_ipu) > 1
    if config.pipeline.recompute_mid_layers and config.pipeline.recompute == "auto" and not pipelined:
        notes.append("pipeline.recompute_mid_layers has no effect with recompute auto, except in a pipeline of IPUs")
    if config.optim.schedule == "constant" and "min_learning_rate" in config.optim.model_fields_set:
        notes.append("optim.min_learning_rate has no effect with schedule constant")
    if config.optim.bce_target_threshold is not None and config.optim.loss != "bce":
        notes.append(f"optim.bce_target_threshold has no effect with loss {config.optim.loss}")
    if config.run.keep_best is not None and config.run.evaluate_every is None:
        notes.append("run.keep_best has no effect without evaluate_every: the only evaluation is at the end")
    if config.run.early_stopping is None and "early_stopping_margin" in config.run.model_fields_set:
        notes.append("run.early_stopping_margin has no effect without early_stopping")
    if training and config.optim.freeze and config.model.init is None:
        notes.append("optim.freeze keeps random weights as they are, because model.init gives no others")
    if config.data.path is not None and config.data.source in ("sample", "generated"):
        notes.append(f"data.path has no effect with source {config.data.source}")
    if config.data.eval_path is not None and config.data.source != "shards":
        notes.append(f"data.eval_path has no effect with source {config.data.source}")
    if config.data.background is not None and config.data.source in _WITHOUT_FILES:
        notes.append(f"data.background has no effect with source {config.data.source}")
    read_by_crop = {"crop_scale": "random_resized", "crop_ratio": "random_resized", "crop_padding": "padded"}
    for name, crop in read_by_crop.items():
        if name in config.data.model_fields_set and config.data.crop != crop:
            notes.append(f"data.{name} has no effect with crop {config.data.crop}")
    return notes + _unused_mixing(config.data)


def _unused_mixing(data: DataConfig) -> List[str]:
    alphas = {"mixup_alpha": data.mixup_alpha, "cutmix_alpha": data.cutmix_alpha}
    notes = []
    if "cutmix_share" in data.model_fields_set and not all(alphas.values()):
        notes.append("data.cutmix_share has no effect unless mixup_alpha and cutmix_alpha are both above 0")
    for name in ("mixing_draw", "mixing_probability"):
        if name in data.model_fields_set and not any(alphas.values()):
            notes.append(f"data.{name} has no effect without mixup_alpha or cutmix_alpha")
    if data.mixing_probability == 0:
        notes += [f"data.{name} has no effect with mixing_probability 0" for name in alphas if alphas[name]]
    return notes

"""Configuration of one run: six frozen sections that are validated when they are made.

A run is one YAML file with the sections `model`, `data`, `pipeline`, `precision`, `optim` and `run`. This module
refuses settings that are wrong on every device, before data or device is touched; `ipu_rules.ipu_violations` finds
the settings that only IPUs refuse. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Tuple

from pydantic import model_validator

from vit_ipu.config_sections.data import DataConfig
from vit_ipu.config_sections.model import ModelConfig
from vit_ipu.config_sections.optim import OptimConfig
from vit_ipu.config_sections.pipeline import PipelineConfig
from vit_ipu.config_sections.precision import PrecisionConfig
from vit_ipu.config_sections.run import RunConfig
from vit_ipu.config_sections.types import Section
from vit_ipu.errors import ConfigError
from vit_ipu.text import counted
from vit_ipu.units import frozen_units

__all__ = ["Config", "DataConfig", "ModelConfig", "OptimConfig", "PipelineConfig", "PrecisionConfig", "RunConfig"]

# Number of classes of each source whose labels are known before the source is read.
SOURCE_CLASSES = {"sample": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


class Config(Section):
    """Configuration of one complete run."""

    model: ModelConfig
    data: DataConfig
    pipeline: PipelineConfig = PipelineConfig()
    precision: PrecisionConfig = PrecisionConfig()
    optim: OptimConfig
    run: RunConfig

    @model_validator(mode="after")
    def _check_sections_agree(self) -> Config:
        for key, layers in (
            ("pipeline.layers_per_ipu", self.pipeline.layers_per_ipu),
            ("run.evaluation_layers_per_ipu", self.run.evaluation_layers_per_ipu),
        ):
            if layers is not None and sum(layers) != self.model.depth:
                raise ValueError(
                    f"{key} {list(layers)} sums to {sum(layers)} but model.depth is {self.model.depth}: make them equal"
                )
        layers = self.pipeline.recompute_mid_layers
        if len(set(layers)) < len(layers):
            raise ValueError(f"pipeline.recompute_mid_layers {list(layers)} names a block twice: name each block once")
        for layer in layers:
            if not 0 <= layer < self.model.depth:
                raise ValueError(
                    f"pipeline.recompute_mid_layers: there is no block {layer}: the blocks are 0 to "
                    f"{self.model.depth - 1}"
                )
        self._check_freeze()
        known = SOURCE_CLASSES.get(self.data.source)
        if known is not None and known != self.model.num_classes:
            raise ValueError(
                f"model.num_classes is {self.model.num_classes} but data.source {self.data.source} has {known} "
                f"classes: set model.num_classes: {known}"
            )
        self._check_loss()
        self._check_counts_of_updates()
        if self.data.mixes and self.pipeline.micro_batch_size == 1:
            raise ValueError(
                f"pipeline.micro_batch_size 1 leaves data.mixup_alpha {self.data.mixup_alpha} and data.cutmix_alpha "
                f"{self.data.cutmix_alpha} nothing to mix with: use 2 or more, or set both to 0"
            )
        if self.data.eval_resize is not None and self.data.eval_resize < self.model.image_size:
            raise ValueError(
                f"data.eval_resize {self.data.eval_resize} is below model.image_size {self.model.image_size}, so the "
                f"centre crop would not fit: use {self.model.image_size} or more"
            )
        return self

    def _check_freeze(self) -> None:
        try:
            frozen_units(self.optim.freeze, self.model.depth)
        except ValueError as error:
            raise ValueError(f"optim.freeze: {error}") from None
        if "pre_logits" in self.optim.freeze and self.model.representation_size is None:
            raise ValueError("optim.freeze: the model has no pre_logits: remove it, or set model.representation_size")

    def _check_loss(self) -> None:
        weights, num_classes = self.optim.class_weights, self.model.num_classes
        if weights is None:
            return
        if weights != "balanced" and len(weights) != num_classes:
            raise ValueError(
                f"optim.class_weights has {len(weights)} numbers but model.num_classes is {num_classes}: give one for "
                "each class"
            )
        if self.optim.loss == "bce":
            raise ValueError(
                "optim.class_weights weights the classes of a cross-entropy, but optim.loss is bce, in which every "
                "sample trains every class: remove it, and set data.sampling: balanced if classes are rare"
            )
        if weights == "balanced" and self.data.sampling == "balanced":
            raise ValueError(
                "optim.class_weights balanced and data.sampling balanced would both make up for rare classes: remove "
                "one"
            )

    def _check_counts_of_updates(self) -> None:
        iterations = self.pipeline.device_iterations
        for name in ("updates", "evaluate_every", "checkpoint_every"):
            count = getattr(self.run, name)
            if count is not None and count % iterations:
                raise ValueError(
                    f"run.{name} {count} is not a multiple of pipeline.device_iterations {iterations}: use "
                    f"{(count // iterations + 1) * iterations}"
                )
        if self.run.updates is not None:
            self._check_warmup(self.run.updates)

    def _check_warmup(self, total_updates: int) -> None:
        if self.optim.warmup_updates > total_updates:
            raise ConfigError(
                f"optim.warmup_updates {self.optim.warmup_updates} is more than the "
                f"{counted(total_updates, 'update')} of the run: set optim.warmup_updates to {total_updates} or less, "
                f"such as by --set optim.warmup_updates={total_updates // 5}"
            )

    @property
    def batch_sizes_left_out(self) -> Tuple[str, ...]:
        """Batch sizes that the config does not state: only one CPU or GPU can do without."""
        stated = self.pipeline.model_fields_set if "pipeline" in self.model_fields_set else set()
        return tuple(name for name in ("global_batch_size", "micro_batch_size") if name not in stated)

    @property
    def layers_per_ipu(self) -> Tuple[int, ...]:
        """Number of blocks on each IPU of a replica; all blocks on one IPU if `pipeline.layers_per_ipu` is null."""
        return self.pipeline.layers_per_ipu or (self.model.depth,)

    @property
    def reduction_factor(self) -> int:
        """Factor on the mean gradient: 1, or accumulation x replicas if `optim.gradient_reduction` is `sum`."""
        if self.optim.gradient_reduction == "mean":
            return 1
        return self.pipeline.gradient_accumulation * self.pipeline.replication_factor

    @property
    def evaluation_micro_batch_size(self) -> int:
        return self.run.evaluation_micro_batch_size or self.pipeline.micro_batch_size

    def for_evaluation(self) -> Config:
        """Returns the config whose `pipeline` section says how the model is spread over IPUs in evaluation."""
        run, pipeline = self.run, self.pipeline
        chosen = {
            "micro_batch_size": run.evaluation_micro_batch_size,
            "layers_per_ipu": run.evaluation_layers_per_ipu,
            "replication_factor": run.evaluation_replication_factor,
            "execution": run.evaluation_execution,
            "available_memory_proportion": run.evaluation_available_memory_proportion,
        }
        changed = {key: value for key, value in chosen.items() if value is not None}
        return self.model_copy(update={"pipeline": pipeline.model_copy(update=changed)})

    def total_updates(self, num_train: int) -> int:
        """Returns the weight updates of the run over `num_train` images: a multiple of device_iterations, above 0.

        The images of all epochs form one stream, so rounding to complete host steps drops at most the last one. Raises
        ConfigError if the warmup is longer than the run.
        """
        if self.run.updates is not None:
            return self.run.updates
        assert self.run.epochs is not None
        host_steps = max(int(self.run.epochs * num_train) // self.pipeline.samples_per_step, 1)
        total = host_steps * self.pipeline.device_iterations
        self._check_warmup(total)
        return total

"""Section `run` of a config."""

from __future__ import annotations

from typing import Optional

from pydantic import Field, model_validator
from typing_extensions import Annotated, Literal

from vit_ipu.config_sections.types import Ints, Positive, Proportions, Rate, Section, check_layers


class RunConfig(Section):
    """Length of the run, its evaluations, checkpoints and logs."""

    updates: Optional[Positive] = None
    """Length of the run in weight updates; give either `updates` or `epochs`."""
    epochs: Optional[Annotated[float, Field(gt=0, le=1e6)]] = None
    """Length of the run in passes over the training images; give either `updates` or `epochs`."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 42
    """Seed of initialisation, order of the images, augmentation and dropout."""
    evaluate_every: Optional[Positive] = None
    """Number of updates between evaluations; null: only at the end."""
    evaluate_at_start: bool = False
    """Evaluates before the first update, too: what the initial weights can do."""
    evaluation_micro_batch_size: Optional[Positive] = None
    """Number of samples that a replica takes at a time in evaluation; null: `pipeline.micro_batch_size`."""
    evaluation_device_iterations: Optional[Positive] = None
    """IPU: number of micro-batches per replica and inference call; null: enough to keep a pipeline of IPUs busy for
    more than 90 % of its cycles."""
    evaluation_layers_per_ipu: Optional[Ints] = None
    """IPU: number of transformer blocks on each IPU of a replica in evaluation; null: `pipeline.layers_per_ipu`."""
    evaluation_replication_factor: Optional[Positive] = None
    """IPU: number of replicas in evaluation; null: `pipeline.replication_factor`."""
    evaluation_execution: Optional[Literal["pipelined", "sharded"]] = None
    """IPU: schedule of the stages in evaluation; null: `pipeline.execution`."""
    evaluation_available_memory_proportion: Optional[Proportions] = None
    """IPU: `pipeline.available_memory_proportion` in evaluation; null: as in training."""
    checkpoint_every: Optional[Positive] = None
    """Number of updates between checkpoints; null: only at the end."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints that are kept."""
    keep_best: Optional[Literal["top1", "top5", "loss"]] = None
    """Measure by which the checkpoint of the best evaluation is kept too, and used where the run is given for its
    weights; each evaluation then comes with a checkpoint. null: only the newest checkpoints are kept."""
    early_stopping: Optional[Positive] = None
    """Number of evaluations in a row that are not better than the best one, by the measure of `keep_best` (null: top1),
    after which the run ends; null: it always lasts to its end."""
    early_stopping_margin: Rate = 0.0
    """Difference by which an evaluation must be better to count as better: per cent for top1 and top5, nats for
    loss."""
    max_loss_factor: Optional[Annotated[float, Field(gt=1, allow_inf_nan=False)]] = 10.0
    """A run stops as diverged if an update's mean loss is more than this factor times the loss of a guess, which is
    ln(num_classes), times the largest of the class weights, or ln(2) with `optim.loss: bce`; null: only if the loss is
    not finite."""
    log_every: Positive = 1
    """Number of host steps between lines of metrics.jsonl."""
    tracking: Literal["none", "tensorboard", "wandb"] = "none"
    """Tracker that receives the metrics in addition to metrics.jsonl."""

    @model_validator(mode="after")
    def _check_evaluation(self) -> RunConfig:
        check_layers("evaluation_layers_per_ipu", self.evaluation_layers_per_ipu)
        if self.early_stopping is not None and self.evaluate_every is None:
            raise ValueError(
                f"early_stopping {self.early_stopping} counts evaluations, but the only one is at the end: set "
                "evaluate_every"
            )
        return self

    @model_validator(mode="after")
    def _check_length(self) -> RunConfig:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError(f"give either updates or epochs: updates is {self.updates}, epochs is {self.epochs}")
        return self

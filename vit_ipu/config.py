"""The configuration of one run: six frozen sections, valid from birth.

A run is one YAML file with the sections `model`, `data`, `pipeline`, `precision`, `optim` and `run`. What
is wrong on every device is refused here, before data or device is touched; what only IPUs cannot do is
`pipeline.ipu_violations`. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, model_validator
from typing_extensions import Annotated, Literal

from vit_ipu.errors import ConfigError, suggest
from vit_ipu.variants import VARIANTS

# The number of classes of the sources whose labels are known before they are read.
SOURCE_CLASSES = {"sample": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}

Positive = Annotated[int, Field(gt=0, le=1 << 30)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
Name = Annotated[str, Field(min_length=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Ints = Annotated[Tuple[StrictInt, ...], Field(strict=False)]
Pair = Annotated[Tuple[StrictFloat, StrictFloat], Field(strict=False)]
Operations = Annotated[
    Tuple[Annotated[StrictInt, Field(ge=1, le=14)], Annotated[StrictInt, Field(ge=0, le=30)]], Field(strict=False)
]
Triple = Annotated[Tuple[StrictFloat, StrictFloat, StrictFloat], Field(strict=False)]
FloatType = Literal["float16", "float32"]


class Section(BaseModel):
    """A frozen section: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """The Vision Transformer; `variant` fills in the four shape fields that are not given."""

    variant: Optional[str] = None
    """One of VARIANTS, such as `vit_base_patch16`."""
    width: Positive
    """Embedding width."""
    depth: Positive
    """Number of transformer blocks."""
    num_heads: Positive
    """Attention heads; must divide the width."""
    patch_size: Positive
    """Side of a patch in pixels; must divide the image size."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Hidden width of the MLP over the width."""
    image_size: Positive = 224
    """Side of the square input in pixels."""
    num_classes: Positive = 1000
    """Width of the classification head."""
    representation_size: Optional[Positive] = None
    """Width of the tanh layer before the head (pre_logits); none when null."""
    dropout: DropRate = 0.0
    """Drop probability after the position embedding, the attention and each MLP layer."""
    attention_dropout: DropRate = 0.0
    """Drop probability of the attention weights."""
    drop_path: DropRate = 0.0
    """Stochastic depth: drop probability of the last block, rising linearly from 0 at the first."""
    gelu: Literal["erf", "tanh"] = "erf"
    """Form of GELU. IPUs compute the tanh form whatever is asked, so a config for them says so."""
    layer_norm_eps: PositiveFloat = 1e-6
    """Epsilon of the layer norms."""
    attention: Literal["auto", "explicit", "fused"] = "auto"
    """Attention kernel: softmax(QK)V written out, or scaled_dot_product_attention; auto: by device."""
    init: Optional[Name] = None
    """Weights to start from: a run, a checkpoint, a file or folder of any known naming, `hf-hub:owner/name`, or an
    https address with `init_sha256`."""
    init_sha256: Optional[Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]] = None
    """SHA-256 of the file that `init` means: another file is refused."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("variant"), str):
            return values
        if values["variant"] not in VARIANTS:
            raise ValueError(
                "variant: {!r} is unknown{}".format(values["variant"], suggest(values["variant"], VARIANTS))
            )
        return dict(VARIANTS[values["variant"]], **values)

    @model_validator(mode="after")
    def _check_shape(self) -> ModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: use "
                f"{max(self.image_size // self.patch_size, 1) * self.patch_size} or "
                f"{(self.image_size // self.patch_size + 1) * self.patch_size}"
            )
        if (self.init or "").startswith("https://") and self.init_sha256 is None:
            raise ValueError("init is an https address: pin the file with init_sha256")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}: change one of them")
        return self

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return self.num_patches + 1

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


class DataConfig(Section):
    """Where images come from, how they are cropped, and how they travel to the device."""

    source: Literal[
        "sample",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "imagefolder",
        "imagenet",
        "shards",
        "huggingface",
        "generated",
    ]
    """`sample` is shipped in the package; `generated` is random pixels and labels; `shards` are tar files as
    `vit-ipu pack` or webdataset make them; `huggingface` is what DatasetDict.save_to_disk wrote."""
    path: Optional[Name] = None
    """Folder of the images; for `shards` the folder with train/ and val/, or, with `eval_path`, the training shards."""
    eval_path: Optional[Name] = None
    """`shards`: the held-out ones, where `path` has the training ones alone: a folder of tar files, or a pattern such
    as imagenet-val-{00..63}.tar."""
    download: bool = False
    """Fetch a torchvision set into `path` if it is not there."""
    num_train: Optional[Positive] = None
    """How many training images: the number that `generated` makes, elsewhere a limit for trials."""
    num_eval: Optional[Positive] = None
    """Likewise for the held-out images."""
    crop: Literal["random_resized", "padded", "center"] = "random_resized"
    """Training crop: of random area and aspect, a random shift of the padded image, or the middle."""
    crop_scale: Pair = (0.08, 1.0)
    """Area of a `random_resized` crop, as fractions of the image."""
    crop_ratio: Pair = (0.75, 4.0 / 3.0)
    """Aspect ratio (width over height) of a `random_resized` crop."""
    crop_padding: Annotated[int, Field(gt=0, le=1024)] = 2
    """Pixels of black around the image for a `padded` crop."""
    horizontal_flip: Probability = 0.5
    """Probability of a mirror image in training."""
    auto_augment: Optional[Literal["imagenet"]] = None
    """AutoAugment (arXiv:1805.09501) after crop and flip, by the policy found on ImageNet."""
    rand_augment: Optional[Operations] = None
    """RandAugment (arXiv:1909.13719) after crop and flip: how many operations, and their magnitude from 0 to 30."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of the image is filled with the mean (arXiv:1708.04896), after all else."""
    mixup_alpha: Rate = 0.0
    """Mixup of images and labels: shares are drawn from Beta(alpha, alpha); off when 0."""
    cutmix_alpha: Rate = 0.0
    """Cutmix of images and labels: shares of the area are drawn from Beta(alpha, alpha); off when 0."""
    cutmix_share: Probability = 0.5
    """Share of draws that are cutmix, where both are on."""
    mixing_draw: Literal["micro_batch", "update"] = "micro_batch"
    """What shares one draw of mixup or cutmix: the samples of a micro-batch, or those of a weight update."""
    mixing_probability: Probability = 1.0
    """Probability that a draw mixes at all."""
    eval_resize: Optional[Positive] = None
    """Short side in pixels before the evaluation's centre crop; the image size when null."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of every resize."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Mean of each channel, of pixels in [0, 1]."""
    std: Triple = (0.5, 0.5, 0.5)
    """Standard deviation of each channel, of pixels in [0, 1]."""
    transfer: Literal["uint8", "float32"] = "uint8"
    """How images travel: bytes that the device normalises, or floats that the host has normalised."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that load images; 0: the main process. The order of the images does not depend on it."""
    on_error: Literal["raise", "skip"] = "raise"
    """An image that cannot be read ends the run, or is named and another takes its place (in evaluation: none)."""

    @model_validator(mode="after")
    def _check_ranges(self) -> DataConfig:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: {low} to {high} is not a range above 0: give the smaller first")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]} is more than the whole image: at most 1")
        if min(self.std) <= 0:
            raise ValueError(f"std: {min(self.std)} must be above 0")
        for name in ("mean", "std"):
            for value in getattr(self, name):
                if not 0 <= value <= 1:
                    raise ValueError(
                        f"{name}: {value} is not in [0, 1], as pixels are: divide what is meant for 0 to 255 by 255"
                    )
        if self.download and self.source not in ("fashion_mnist", "cifar10", "cifar100"):
            raise ValueError(f"download: source {self.source} cannot be downloaded: remove the key")
        if self.auto_augment is not None and self.rand_augment is not None:
            raise ValueError(
                f"auto_augment {self.auto_augment} and rand_augment {list(self.rand_augment)} exclude each other: "
                "remove one"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether training mixes samples."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mixing_probability > 0


class PipelineConfig(Section):
    """The split over IPUs and the arithmetic of batches; gradient accumulation is derived."""

    global_batch_size: Positive
    """Samples per weight update: the same on every device."""
    micro_batch_size: Positive
    """Samples that pass a stage at a time, on one replica."""
    replication_factor: Positive = 1
    """Copies of the pipeline, in total over all hosts."""
    device_iterations: Positive = 1
    """Weight updates per call of the device (host step)."""
    layers_per_ipu: Optional[Ints] = None
    """Transformer blocks on each IPU of a replica; the embedding joins the first, the head the last, and a 0
    there gives it the IPU to itself. All blocks on one IPU when null."""
    native_micro_batch_size: Optional[Positive] = None
    """Samples at a time on a CPU or GPU, which may merge micro-batches; from the memory when null."""
    execution: Literal["pipelined", "sharded"] = "pipelined"
    """All stages at work on different micro-batches, or one stage at a time."""
    recompute: Literal["auto", "none", "every_block"] = "auto"
    """Activations kept for the backward pass: PopTorch's choice, all of them, or each block's output."""
    available_memory_proportion: Optional[Annotated[Tuple[StrictFloat, ...], Field(strict=False)]] = None
    """Share of an IPU's memory for temporaries of matrix products: one number for all IPUs, or one each."""
    replicated_tensor_sharding: bool = False
    """Spread the optimizer state over the replicas."""
    optimizer_state: Literal["on_chip", "off_chip"] = "on_chip"
    """Where the optimizer state rests: in the IPU's SRAM or in streaming memory."""
    io_tiles: Optional[int] = None
    """Tiles set aside for input and output; none when null."""
    executable_cache: Optional[Name] = None
    """Folder for compiled programs."""
    synthetic_data: bool = False
    """The IPU makes random inputs itself, so that a benchmark leaves out the host. Never learns anything."""
    profile: Optional[Name] = None
    """Folder for a PopVision report of the compilation and the run."""

    @model_validator(mode="before")
    @classmethod
    def _one_proportion_for_all(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("available_memory_proportion"), float):
            return dict(values, available_memory_proportion=[values["available_memory_proportion"]])
        return values

    @model_validator(mode="after")
    def _check_arithmetic(self) -> PipelineConfig:
        at_once = self.micro_batch_size * self.replication_factor
        if self.global_batch_size % at_once:
            below = self.global_batch_size // at_once * at_once
            raise ValueError(
                "global_batch_size {} is not a multiple of micro_batch_size {} x replication_factor {} = {}: "
                "use {}{}".format(
                    self.global_batch_size,
                    self.micro_batch_size,
                    self.replication_factor,
                    at_once,
                    f"{below} or " if below else "",
                    below + at_once,
                )
            )
        native = self.native_micro_batch_size
        if native is not None and (self.global_batch_size % native or native % self.micro_batch_size):
            raise ValueError(
                f"native_micro_batch_size {native} must be a multiple of micro_batch_size {self.micro_batch_size} and "
                f"divide global_batch_size {self.global_batch_size}"
            )
        for count in self.layers_per_ipu or ():
            if count < 0:
                raise ValueError(f"layers_per_ipu: {count} is negative")
        if self.layers_per_ipu is not None and 0 in self.layers_per_ipu[1:-1]:
            raise ValueError(
                f"layers_per_ipu {list(self.layers_per_ipu)}: IPU {self.layers_per_ipu[1:-1].index(0) + 1} would have "
                "nothing to do: only the first, with the embedding, and the last, with the head, may have 0 blocks"
            )
        return self

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches per replica and weight update."""
        return self.global_batch_size // (self.micro_batch_size * self.replication_factor)

    @property
    def samples_per_step(self) -> int:
        """Samples per host step."""
        return self.global_batch_size * self.device_iterations


class PrecisionConfig(Section):
    """Number formats; `auto` is float16 on IPUs, bfloat16 on CUDA and float32 on the CPU."""

    compute: Literal["auto", "float16", "bfloat16", "float32", "float64"] = "auto"
    """Format of weights and activations on IPUs, of activations on CUDA (weights stay float32)."""
    partials: FloatType = "float32"
    """IPU: format of the partial sums of matrix products."""
    stochastic_rounding: bool = False
    """IPU: round to float16 up or down at random, without bias, in training."""
    loss_scale: PositiveFloat = 1.0
    """IPU: factor on the loss that keeps float16 gradients in range."""
    automatic_loss_scale: bool = False
    """IPU: adapt the loss scale while training."""
    accumulation: FloatType = "float32"
    """IPU: format of the accumulated gradient."""
    first_moment: FloatType = "float32"
    """IPU: format of the velocity of SGD or the first moment of Adam, AdamW and LAMB."""
    second_moment: FloatType = "float32"
    """IPU: format of the second moment of Adam, AdamW and LAMB."""
    torch_compile: Literal["auto", "always", "never"] = "auto"
    """CUDA and CPU: torch.compile; auto: on CUDA."""

    def resolve_compute(self, device_kind: str) -> str:
        """Returns the number format that `compute` means on a kind of device (ipu, ipu-sim, cuda, cpu)."""
        if self.compute != "auto":
            return self.compute
        return {"ipu": "float16", "ipu-sim": "float16", "cuda": "bfloat16", "cpu": "float32"}[device_kind]


class OptimConfig(Section):
    """The optimizer, the loss and the learning rate's schedule, which counts updates."""

    optimizer: Literal["sgd", "adam", "adamw", "lamb"]
    """SGD with momentum; Adam with L2; AdamW; LAMB as PopTorch has it."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    """Peak learning rate."""
    momentum: DropRate = 0.9
    """SGD: momentum."""
    nesterov: bool = False
    """SGD: Nesterov's form."""
    betas: Pair = (0.9, 0.999)
    """Adam, AdamW, LAMB: decay of the moments."""
    eps: PositiveFloat = 1e-8
    """Adam, AdamW, LAMB: added to the root of the second moment."""
    weight_decay: Rate = 0.0
    """L2 for SGD and Adam, decoupled for AdamW and LAMB."""
    decay_exempt: Annotated[Tuple[Literal["bias", "norm", "cls_token", "pos_embed"], ...], Field(strict=False)] = (
        "bias",
        "norm",
        "cls_token",
        "pos_embed",
    )
    """Parameters without weight decay."""
    max_weight_norm: Optional[Rate] = None
    """LAMB: upper clamp of the weight norm in the trust ratio; 65500 when null, as in PopTorch."""
    exempt_max_weight_norm: Optional[Rate] = None
    """LAMB: the same for parameters without decay; 0 turns their trust ratio off."""
    max_grad_norm: Optional[PositiveFloat] = None
    """Global norm at which gradients are clipped; none when null."""
    gradient_reduction: Literal["mean", "sum"] = "mean"
    """Over micro-batches and replicas; `sum` multiplies the mean by their number on every device."""
    label_smoothing: DropRate = 0.0
    """Share of the target spread evenly over the classes."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    warmup_updates: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    """Updates in which the learning rate rises linearly."""
    warmup_start: Probability = 0.0
    """Learning rate at the first update, as a fraction of the peak."""
    min_learning_rate: Rate = 0.0
    """Learning rate at the end of cosine and linear schedules."""

    @model_validator(mode="after")
    def _check_learning_rates(self) -> OptimConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: swap them"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas: {beta} is not in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov: true needs momentum above 0, which is {self.momentum}")
        return self


class RunConfig(Section):
    """How long to train, and what to write down."""

    updates: Optional[Positive] = None
    """Length in weight updates; either this or `epochs`."""
    epochs: Optional[Annotated[float, Field(gt=0, le=1e6)]] = None
    """Length in passes over the training images; either this or `updates`."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 42
    """Of initialisation, order, augmentation and dropout."""
    evaluate_every: Optional[Positive] = None
    """Updates between evaluations; only at the end when null."""
    evaluation_micro_batch_size: Optional[Positive] = None
    """Samples at a time and replica in evaluation; the micro-batch size when null."""
    evaluation_device_iterations: Optional[Positive] = None
    """IPU: micro-batches per replica and inference call; as many as stages when null."""
    checkpoint_every: Optional[Positive] = None
    """Updates between checkpoints; only at the end when null."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay."""
    log_every: Positive = 1
    """Host steps between lines of metrics.jsonl."""
    tracking: Literal["none", "tensorboard", "wandb"] = "none"
    """Where metrics go beside metrics.jsonl."""

    @model_validator(mode="after")
    def _check_length(self) -> RunConfig:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError(f"give either updates or epochs: updates is {self.updates}, epochs is {self.epochs}")
        return self


class Config(Section):
    """One complete run."""

    model: ModelConfig
    data: DataConfig
    pipeline: PipelineConfig
    precision: PrecisionConfig = PrecisionConfig()
    optim: OptimConfig
    run: RunConfig

    @model_validator(mode="after")
    def _check_sections_agree(self) -> Config:
        layers = self.pipeline.layers_per_ipu
        if layers is not None and sum(layers) != self.model.depth:
            raise ValueError(
                f"pipeline.layers_per_ipu {list(layers)} sums to {sum(layers)} but model.depth is {self.model.depth}: "
                "make them equal"
            )
        known = SOURCE_CLASSES.get(self.data.source)
        if known is not None and known != self.model.num_classes:
            raise ValueError(
                f"model.num_classes is {self.model.num_classes} but data.source {self.data.source} has {known} "
                f"classes: set model.num_classes: {known}"
            )
        self._check_counts_of_updates()
        if self.data.mixes and self.pipeline.micro_batch_size == 1:
            raise ValueError(
                f"pipeline.micro_batch_size 1 leaves data.mixup_alpha {self.data.mixup_alpha} and data.cutmix_alpha "
                f"{self.data.cutmix_alpha} nothing to mix with: use 2 or more, or set both to 0"
            )
        if self.data.eval_resize is not None and self.data.eval_resize < self.model.image_size:
            raise ValueError(
                f"data.eval_resize {self.data.eval_resize} is below model.image_size {self.model.image_size}: the "
                "centre crop would not fit"
            )
        return self

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
                f"optim.warmup_updates {self.optim.warmup_updates} is more than the {total_updates} updates of the "
                "run: shorten the warmup"
            )

    @property
    def layers_per_ipu(self) -> Tuple[int, ...]:
        """Blocks on each IPU of a replica; all on one when the config does not say."""
        return self.pipeline.layers_per_ipu or (self.model.depth,)

    @property
    def reduction_factor(self) -> int:
        """What multiplies the mean gradient: 1, or accumulation x replicas where the recipe sums."""
        if self.optim.gradient_reduction == "mean":
            return 1
        return self.pipeline.gradient_accumulation * self.pipeline.replication_factor

    @property
    def evaluation_micro_batch_size(self) -> int:
        return self.run.evaluation_micro_batch_size or self.pipeline.micro_batch_size

    def total_updates(self, num_train: int) -> int:
        """Weight updates of the run over `num_train` images: a multiple of device_iterations, at least one.

        Images form one stream over all epochs, so that only the last host step may be lost to rounding. Raises
        ConfigError if the warmup is longer.
        """
        if self.run.updates is not None:
            return self.run.updates
        assert self.run.epochs is not None
        host_steps = max(int(self.run.epochs * num_train) // self.pipeline.samples_per_step, 1)
        total = host_steps * self.pipeline.device_iterations
        self._check_warmup(total)
        return total

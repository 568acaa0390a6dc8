"""Configuration of one run: six frozen sections that are validated when they are made.

A run is one YAML file with the sections `model`, `data`, `pipeline`, `precision`, `optim` and `run`. This module
refuses settings that are wrong on every device, before data or device is touched; `ipu_rules.ipu_violations` finds
the settings that only IPUs refuse. Nothing here imports torch.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Dict, Optional, Tuple, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    model_validator,
)
from typing_extensions import Annotated, Literal

from vit_ipu.errors import ConfigError, suggest
from vit_ipu.popart_options import popart_options_problem
from vit_ipu.text import counted
from vit_ipu.units import frozen_units
from vit_ipu.variants import VARIANTS

# Number of classes of each source whose labels are known before the source is read.
SOURCE_CLASSES = {"sample": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL, which no path can have: remove it")
    return text


Positive = Annotated[int, Field(gt=0, le=1 << 30)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_nul)]
Probability = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Ints = Annotated[Tuple[StrictInt, ...], Field(strict=False)]
Pair = Annotated[Tuple[StrictFloat, StrictFloat], Field(strict=False)]
Operations = Annotated[
    Tuple[Annotated[StrictInt, Field(ge=1, le=14)], Annotated[StrictInt, Field(ge=0, le=30)]], Field(strict=False)
]
Proportions = Annotated[
    Tuple[StrictFloat, ...],
    Field(strict=False),
    BeforeValidator(lambda value: [value] if isinstance(value, float) else value),
]
Triple = Annotated[Tuple[StrictFloat, StrictFloat, StrictFloat], Field(strict=False)]
FloatType = Literal["float16", "float32"]


def _class_weights(value: Any) -> Any:
    """Refuses other values than null, `balanced` and a list of numbers above 0; a union's own message is long."""
    if value is None or value == "balanced":
        return value
    is_list = isinstance(value, (list, tuple))
    if not is_list or any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in value):
        raise ValueError(f"must be balanced, null, or a list of one number for each class, but it is {value!r}")
    for label, one in enumerate(value):
        if not (isfinite(one) and 0 < one <= 1e9):
            raise ValueError(
                f"the weight of class {label} is {one:g}: give each class a number above 0, up to 1e9; to leave a "
                "class out, remove its images"
            )
    return tuple(map(float, value))


ClassWeights = Annotated[
    Optional[Union[Literal["balanced"], Annotated[Tuple[PositiveFloat, ...], Field(strict=False)]]],
    BeforeValidator(_class_weights),
]


class Section(BaseModel):
    """Frozen section of a config; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """Vision Transformer; `variant` fills in `width`, `depth`, `num_heads` and `patch_size` if they are not given."""

    variant: Optional[str] = None
    """Name of a shape, such as `vit_base_patch16`; `vit-ipu models` lists the names."""
    width: Positive
    """Embedding width."""
    depth: Positive
    """Number of transformer blocks."""
    num_heads: Positive
    """Number of attention heads; must divide `width`."""
    patch_size: Positive
    """Side of a square patch in pixels; must divide `image_size`."""
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    """Hidden width of the MLP as a multiple of `width`."""
    image_size: Positive = 224
    """Side of the square input image in pixels."""
    num_classes: Positive = 1000
    """Number of classes: the width of the classification head."""
    representation_size: Optional[Positive] = None
    """Width of the tanh layer before the head (pre_logits); null: without this layer."""
    dropout: DropRate = 0.0
    """Dropout probability after the position embedding, the attention and each MLP layer."""
    attention_dropout: DropRate = 0.0
    """Dropout probability of the attention weights."""
    drop_path: DropRate = 0.0
    """Stochastic depth: drop probability of the last block; it rises linearly from 0 at the first block."""
    gelu: Literal["erf", "tanh"] = "erf"
    """Form of GELU: exact (erf) or the tanh approximation. IPUs compute only the tanh form, so IPU configs set tanh."""
    layer_norm_eps: PositiveFloat = 1e-6
    """Epsilon of the layer norms; at least 1e-6 on IPUs."""
    attention: Literal["auto", "explicit", "fused"] = "auto"
    """Attention kernel: softmax(QK)V written out (explicit) or scaled_dot_product_attention (fused); auto: explicit on
    IPUs, fused elsewhere."""
    init: Optional[Name] = None
    """Weights to start from: a run folder, a checkpoint, a weights file or folder in any known naming,
    `hf-hub:owner/name`, or an https address with `init_sha256`; null: random weights."""
    head_init: Literal["auto", "normal", "zero", "xavier"] = "auto"
    """Initial weights of a new head: truncated normal of deviation 0.02, zero, or Xavier's normal (AISTATS 2010); auto:
    normal if all weights are random, zero (arXiv:2010.11929, B.1.1) if `init` gives the others."""
    head_bias_init: Annotated[float, Field(ge=-1000, le=1000)] = 0.0
    """Initial bias of a new head."""
    init_sha256: Optional[Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]] = None
    """SHA-256 of the file that `init` names; a file with another hash is refused."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("variant"), str):
            return values
        if values["variant"] not in VARIANTS:
            raise ValueError(f"variant: {values['variant']!r} is unknown{suggest(values['variant'], VARIANTS)}")
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
            raise ValueError("init is an https address: give the SHA-256 of its file as init_sha256")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}: change one of them")
        return self

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Number of tokens: the patches and the class token."""
        return self.num_patches + 1

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


class DataConfig(Section):
    """Source of the images, their augmentation, and their transfer to the device."""

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
    """Source of the images. `sample`: images in the package. `fashion_mnist`, `cifar10`, `cifar100`: data sets of
    torchvision. `imagefolder`: a folder with train/CLASS and val/CLASS. `imagenet`: ImageNet as it is distributed or as
    on Kaggle. `shards`: tar files that `vit-ipu pack` or webdataset wrote. `huggingface`: a folder that
    DatasetDict.save_to_disk wrote. `generated`: random pixels and labels."""
    path: Optional[Name] = None
    """Folder of the images. For `shards`: the folder with train/ and val/, or only the training shards if `eval_path`
    is given."""
    eval_path: Optional[Name] = None
    """Held-out shards of `shards`, if `path` contains only the training shards: a folder of tar files, or a pattern
    such as imagenet-val-{00..63}.tar."""
    holdout: Optional[Annotated[float, Field(gt=0, lt=1)]] = None
    """`imagefolder` with the class folders directly in `path`: share of the images of each class that is held out for
    evaluation, chosen by the names of the files; null: `path` has train/ and val/."""
    download: bool = False
    """Downloads a torchvision data set into `path` if it is missing there."""
    num_train: Optional[Positive] = None
    """Number of training images that `generated` makes; for other sources an upper limit, for trials."""
    num_eval: Optional[Positive] = None
    """Number of held-out images that `generated` makes; for other sources an upper limit, for trials."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Choice of the training images of an epoch, which has as many samples as there are training images: each image
    once (shuffled), or each class equally often (balanced), so that images of a rare class come several times, each
    time with other augmentation, and those of a frequent class continue in the next epoch where this one ended."""
    crop: Literal["random_resized", "padded", "center"] = "random_resized"
    """Crop in training: of random area and aspect ratio (random_resized), at a random position in the padded image
    (padded), or from the middle (center)."""
    crop_scale: Pair = (0.08, 1.0)
    """Smallest and largest area of a `random_resized` crop, as fractions of the image's area."""
    crop_ratio: Pair = (0.75, 4.0 / 3.0)
    """Smallest and largest aspect ratio (width over height) of a `random_resized` crop."""
    crop_padding: Annotated[int, Field(gt=0, le=1024)] = 2
    """Width in pixels of the black border around the image for a `padded` crop."""
    horizontal_flip: Probability = 0.5
    """Probability that a training image is mirrored left to right."""
    auto_augment: Optional[Literal["imagenet"]] = None
    """AutoAugment (arXiv:1805.09501) after crop and flip, with the policy found on ImageNet; null: off."""
    rand_augment: Optional[Operations] = None
    """RandAugment (arXiv:1909.13719) after crop and flip: number of operations, magnitude from 0 to 30; null: off.
    timm's magnitudes go to 10: DeiT's `rand-m9` is `[2, 27]` here."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of the image is filled with the mean (arXiv:1708.04896), as last augmentation."""
    mixup_alpha: Rate = 0.0
    """Alpha of mixup: the shares of images and labels are drawn from Beta(alpha, alpha); 0: off."""
    cutmix_alpha: Rate = 0.0
    """Alpha of cutmix: the shares of area and labels are drawn from Beta(alpha, alpha); 0: off."""
    cutmix_share: Probability = 0.5
    """Share of draws that are cutmix, if mixup and cutmix are both on."""
    mixing_draw: Literal["micro_batch", "update"] = "micro_batch"
    """Samples that share one draw of mixup or cutmix: all of a micro-batch, or all of a weight update."""
    mixing_probability: Probability = 1.0
    """Probability that a draw mixes its samples; otherwise they stay as they are."""
    eval_resize: Optional[Positive] = None
    """Short side in pixels of the resized image before the centre crop of evaluation; null: `image_size`."""
    eval_crop: Literal["center", "squash"] = "center"
    """Resize of evaluation: the aspect ratio stays (center), or both sides become `eval_resize` pixels (squash)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation filter of every resize."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Mean of each channel, for pixels in [0, 1]."""
    std: Triple = (0.5, 0.5, 0.5)
    """Standard deviation of each channel, for pixels in [0, 1]."""
    transfer: Literal["uint8", "float32"] = "uint8"
    """Format of images sent to the device: bytes that the device normalises, or floats that the host has normalised."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of processes that load images; 0: the main process. The order of the images is the same for any number."""
    on_error: Literal["raise", "skip"] = "raise"
    """Handling of an image that cannot be read: `raise` ends the run; `skip` reports the image, and in training uses
    another image in its place."""

    @model_validator(mode="after")
    def _check_ranges(self) -> DataConfig:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: {low} to {high} is not a range above 0: give the smaller first")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]} is more than the area of the image: give at most 1")
        if min(self.std) <= 0:
            raise ValueError(f"std: {min(self.std)} must be above 0")
        for name in ("mean", "std"):
            for value in getattr(self, name):
                if not 0 <= value <= 1:
                    raise ValueError(
                        f"{name}: {value} is not in [0, 1], like pixels: divide values for pixels of 0 to 255 by 255"
                    )
        if self.download and self.source not in ("fashion_mnist", "cifar10", "cifar100"):
            raise ValueError(f"download: source {self.source} cannot be downloaded: remove the key")
        if self.holdout is not None and self.source != "imagefolder":
            raise ValueError(
                f"holdout {self.holdout} divides only a folder of class folders (source imagefolder), but source is "
                f"{self.source}, which has held-out images of its own: remove the key"
            )
        if self.auto_augment is not None and self.rand_augment is not None:
            raise ValueError(
                f"auto_augment {self.auto_augment} and rand_augment {list(self.rand_augment)} exclude each other: "
                "remove one"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Tells whether training mixes samples."""
        return (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.mixing_probability > 0


def _check_layers(key: str, layers: Optional[Tuple[int, ...]]) -> None:
    for count in layers or ():
        if count < 0:
            raise ValueError(f"{key}: {count} is negative: give 0 or more blocks for each IPU")
    if layers is not None and 0 in layers[1:-1]:
        raise ValueError(
            f"{key} {list(layers)}: IPU {layers[1:-1].index(0) + 1} would have nothing to do: only the first, with the "
            "embedding, and the last, with the head, may have 0 blocks"
        )


class PipelineConfig(Section):
    """Split of the model over IPUs, and batch sizes, from which gradient accumulation is derived.

    Only IPUs need this section: on a CPU or a GPU its defaults train.
    """

    global_batch_size: Positive = 64
    """Number of samples per weight update, the same on every device; IPUs need it."""
    micro_batch_size: Positive = 8
    """Number of samples that pass through a stage at a time, on one replica; IPUs need it. Mixing takes the samples of
    a micro-batch on every device."""
    replication_factor: Positive = 1
    """IPU: number of copies of the pipeline, in total over all hosts."""
    device_iterations: Positive = 1
    """Number of weight updates per host step, which is one call of the device."""
    layers_per_ipu: Optional[Ints] = None
    """IPU: number of transformer blocks on each IPU of a replica; null: all blocks on one IPU. The first IPU also takes
    the embedding and the last IPU the head; with 0 blocks, the first or the last IPU has only the embedding or the
    head."""
    native_micro_batch_size: Optional[Positive] = None
    """CUDA and CPU: number of samples that the device takes at a time, by merging micro-batches; null: as many as a
    measurement of the GPU's memory allows, and on a CPU as many as it computes fastest."""
    execution: Literal["pipelined", "sharded"] = "pipelined"
    """IPU: schedule of the stages: all at work on different micro-batches (pipelined), or one at a time (sharded)."""
    recompute: Literal["auto", "none", "every_block"] = "auto"
    """IPU: activations kept for the backward pass: PopTorch's choice (auto), all activations (none), or only each
    block's output (every_block)."""
    recompute_mid_layers: Ints = ()
    """IPU: blocks, counted from 0, whose activation between attention and MLP is also kept: one block on each IPU
    lowers the peak of memory, because each half of the block is computed again on its own."""
    available_memory_proportion: Optional[Proportions] = None
    """IPU: share of an IPU's memory for temporaries of matrix products: one number for all IPUs, or one for each
    IPU."""
    replicated_tensor_sharding: bool = False
    """IPU: spreads the optimizer state over the replicas."""
    optimizer_state: Literal["on_chip", "off_chip"] = "on_chip"
    """IPU: memory that holds the optimizer state: the IPU's SRAM (on_chip) or streaming memory (off_chip)."""
    io_tiles: Optional[int] = None
    """IPU: number of tiles reserved for input and output: an even number from 32 to 192; null: none."""
    overlap_io: Literal["none", "accumulation_loop", "device_iteration_loop"] = "none"
    """IPU: copies the next input while the IPU computes: within a weight update (accumulation_loop) or also across
    updates (device_iteration_loop). Needs `io_tiles` and `execution: sharded`."""
    prefetch_depth: Positive = 2
    """IPU: number of inputs that the host prepares ahead for each stream to the IPU."""
    popart_options: Dict[str, Any] = {}
    """IPU: further options of popart::SessionOptions by name, such as `outlineThreshold: 10.0`, and `patterns`: names
    of PopART's patterns with true or false. Enums are numbers. They replace what this program sets itself."""
    engine_options: Dict[str, Any] = {}
    """IPU: further options of Poplar's engine by name, such as `opt.internalExchangeOptimisationTarget: memory`."""
    ipu_version: Literal[2, 21] = 2
    """IPU: kind of IPU that `vit-ipu compile --offline` compiles for: Mk2 (2) or Bow (21)."""
    executable_cache: Optional[Name] = None
    """IPU: folder that keeps compiled programs, so that a second start loads them; null: programs are not kept."""
    synthetic_data: bool = False
    """IPU: makes random inputs on the IPU, so that a benchmark leaves out the host. The model learns nothing from
    them."""
    profile: Optional[Name] = None
    """IPU: folder for a PopVision report of the compilation and the run."""

    @model_validator(mode="after")
    def _check_options(self) -> PipelineConfig:
        problem = popart_options_problem(self.popart_options)
        if problem is not None:
            raise ValueError(f"popart_options: {problem}")
        for name, value in self.engine_options.items():
            if not isinstance(value, (str, int)) and not (isinstance(value, float) and isfinite(value)):
                raise ValueError(f"engine_options: {name} must be a text, a number, true or false, but it is {value!r}")
        if self.recompute_mid_layers and self.recompute == "none":
            raise ValueError(
                f"recompute_mid_layers {list(self.recompute_mid_layers)} has no effect with recompute: none: use "
                "every_block or auto"
            )
        return self

    @model_validator(mode="after")
    def _check_arithmetic(self) -> PipelineConfig:
        at_once = self.micro_batch_size * self.replication_factor
        if self.global_batch_size % at_once:
            below = self.global_batch_size // at_once * at_once
            smaller = f"{below} or " if below else ""
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size} x replication_factor {self.replication_factor} = {at_once}: use "
                f"{smaller}{below + at_once}"
            )
        native = self.native_micro_batch_size
        if native is not None and (self.global_batch_size % native or native % self.micro_batch_size):
            raise ValueError(
                f"native_micro_batch_size {native} must be a multiple of micro_batch_size {self.micro_batch_size} and "
                f"divide global_batch_size {self.global_batch_size}"
            )
        _check_layers("layers_per_ipu", self.layers_per_ipu)
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
    """Number formats of the computation."""

    compute: Literal["auto", "float16", "bfloat16", "float32", "float64"] = "auto"
    """Format of weights and activations; auto: float16 on IPUs, bfloat16 on CUDA and float32 on the CPU. In bfloat16 it
    is that of a copy of the weights, beside float32 weights that the optimizer updates."""
    partials: FloatType = "float32"
    """IPU: format of the partial sums of matrix products."""
    stochastic_rounding: bool = False
    """IPU: rounds to float16 up or down at random, without bias, in training."""
    loss_scale: PositiveFloat = 1.0
    """IPU: factor on the loss that keeps float16 gradients in range."""
    automatic_loss_scale: bool = False
    """IPU: adapts the loss scale during training."""
    accumulation: FloatType = "float32"
    """IPU: format of the accumulated gradient."""
    first_moment: FloatType = "float32"
    """IPU: format of the velocity of SGD or the first moment of Adam, AdamW and LAMB."""
    second_moment: FloatType = "float32"
    """IPU: format of the second moment of Adam, AdamW and LAMB."""
    torch_compile: Literal["auto", "always", "never"] = "auto"
    """CUDA and CPU: use of torch.compile; auto: only on CUDA."""

    def resolve_compute(self, device_kind: str) -> str:
        """Returns the number format that `compute` means on a kind of device (ipu, ipu-sim, cuda, cpu)."""
        if self.compute != "auto":
            return self.compute
        return {"ipu": "float16", "ipu-sim": "float16", "cuda": "bfloat16", "cpu": "float32"}[device_kind]


class OptimConfig(Section):
    """Optimizer, loss and learning rate schedule; the schedule counts weight updates."""

    optimizer: Literal["sgd", "adam", "adamw", "lamb"]
    """Optimizer: SGD with momentum, Adam with L2, AdamW, or LAMB as in PopTorch."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    """Peak learning rate."""
    momentum: DropRate = 0.9
    """SGD: factor of the momentum."""
    nesterov: bool = False
    """SGD: uses Nesterov's form of momentum."""
    betas: Pair = (0.9, 0.999)
    """Adam, AdamW, LAMB: decay rates of the first and the second moment."""
    eps: PositiveFloat = 1e-8
    """Adam, AdamW, LAMB: constant added to the root of the second moment."""
    weight_decay: Rate = 0.0
    """Weight decay: an L2 term for SGD and Adam, decoupled for AdamW and LAMB."""
    decay_exempt: Annotated[Tuple[Literal["bias", "norm", "cls_token", "pos_embed"], ...], Field(strict=False)] = (
        "bias",
        "norm",
        "cls_token",
        "pos_embed",
    )
    """Kinds of parameters that have no weight decay."""
    bias_correction: bool = True
    """LAMB: divides the moments by 1 - beta**update, which removes their bias towards 0 at the start."""
    use_combined_accum: bool = False
    """IPU: for SGD, adds gradients directly to the velocity, which saves the memory of the accumulated gradient."""
    max_weight_norm: Optional[Rate] = None
    """LAMB: upper clamp of the weight norm in the trust ratio; null: 65500, as in PopTorch."""
    exempt_max_weight_norm: Optional[Rate] = None
    """LAMB: upper clamp as in `max_weight_norm`, for parameters without decay; 0 turns off their trust ratio."""
    max_grad_norm: Optional[PositiveFloat] = None
    """Global norm at which gradients are clipped; null: no clipping."""
    gradient_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the gradients of micro-batches and replicas; `sum` multiplies the mean by gradient accumulation x
    replicas, on every device."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Loss of the training: cross-entropy over the classes, or binary cross-entropy (bce), the mean over samples and
    classes of a separate yes or no for each class. With bce, probabilities are sigmoids, and the loss of evaluations is
    the binary cross-entropy."""
    label_smoothing: DropRate = 0.0
    """Share of the target that is spread evenly over the classes."""
    bce_target_threshold: Optional[Annotated[float, Field(ge=0, lt=1)]] = None
    """Threshold for `loss: bce`: a target above it, after mixing and smoothing, becomes 1 and every other one 0; null:
    targets stay as they are."""
    class_weights: ClassWeights = None
    """Weight of each class in the cross-entropy: `balanced`, which is n / (K x n_k) for n training images of K classes,
    n_k of them of this class; or a list of K numbers, of which only the ratios matter. The weights are scaled to a mean
    of 1 over the training images that are drawn. Evaluations do not weight. null: all classes count alike."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Curve of the learning rate after the warmup: it falls (cosine, linear) or stays (constant)."""
    warmup_updates: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    """Number of updates at the start in which the learning rate rises linearly."""
    warmup_start: Optional[Probability] = None
    """Learning rate at the first update, as a fraction of the peak, which the update after the warmup has; null: the
    first of n has 1/n and the last the peak. At 0 the first host step learns nothing, as in some published recipes."""
    min_learning_rate: Rate = 0.0
    """Learning rate at the end of cosine and linear schedules."""
    layer_decay: Optional[Annotated[float, Field(gt=0, le=1)]] = None
    """Factor on the learning rate from each layer to the one before it, as in timm (arXiv:2003.10555): the head has the
    full rate, the last block this factor, the embedding its power of `depth` + 1; null: one rate for all."""
    freeze: Annotated[Tuple[Name, ...], Field(strict=False)] = ()
    """Parts of the model that keep their weights: `embed`, `blocks`, `blocks.3`, `blocks.0-7`, `norm`, `pre_logits`.
    The head is always trained; `[embed, blocks, norm]` trains only the head (a linear probe)."""
    ema_decay: Optional[Annotated[float, Field(gt=0, lt=1)]] = None
    """Decay per update of the exponential moving average of the weights, which evaluation, prediction and export then
    use; null: no average. It changes after each host step, by the decay to the power of `device_iterations`. On IPUs,
    each host step then copies the weights to the host."""

    @model_validator(mode="after")
    def _check_learning_rates(self) -> OptimConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}: swap them"
            )
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas: {beta} is not in [0, 1)")
        if self.use_combined_accum and self.optimizer != "sgd":
            raise ValueError(f"use_combined_accum: {self.optimizer} has no velocity: set it to false, or use sgd")
        if not self.bias_correction and self.optimizer != "lamb":
            raise ValueError(f"bias_correction: false is only for lamb, not {self.optimizer}: set it to true")
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov: true needs momentum above 0, but it is {self.momentum}: change one of them")
        return self


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
        _check_layers("evaluation_layers_per_ipu", self.evaluation_layers_per_ipu)
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
                f"{counted(total_updates, 'update')} of the "
                "run: shorten the warmup"
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

"""Section `data` of a config."""

from __future__ import annotations

from typing import Optional

from pydantic import Field, model_validator
from typing_extensions import Annotated, Literal

from vit_ipu.config_sections.types import Name, Operations, Pair, Positive, Probability, Rate, Section, Triple


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
    """Share of the training images of each class that is held out for evaluation. `imagefolder` with the class folders
    directly in `path`: chosen by the names of the files; null: `path` has train/ and val/. Other sources have held-out
    images of their own, which are then left aside, so that settings can be chosen without them."""
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

"""Reads the steps from an image to pixels in transformers' preprocessor_config.json."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from vit_ipu.errors import NotSupported

Triple = Tuple[float, float, float]

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters, and this program's names."""


@dataclass(frozen=True)
class _Processor:
    """Defaults of one of transformers' image processors."""

    is_square: bool
    """Whether a size that is one number is of both sides, rather than of the short side."""
    resize: Optional[int]
    """None: the model's image size."""
    crops: bool
    resample: int
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PROCESSORS = {
    "ViT": _Processor(is_square=True, resize=None, crops=False, resample=2),
    "DeiT": _Processor(is_square=True, resize=256, crops=True, resample=3),
    "CLIP": _Processor(is_square=False, resize=None, crops=True, resample=3, mean=_CLIP_MEAN, std=_CLIP_STD),
    "Bit": _Processor(is_square=False, resize=None, crops=True, resample=3, mean=_CLIP_MEAN, std=_CLIP_STD),
}
"""By name, without the suffix ImageProcessor. Source: transformers' image_processing_*.py."""


def preprocessing(pixels: Dict[str, Any], image_size: Any) -> Dict[str, Any]:
    """Returns what a preprocessor_config.json states, by the names of native.Preprocessing; nothing if it is empty.

    `image_size` is the model's, if it is known. Raises NotSupported if the steps cannot be followed, and
    another Exception for a damaged file.
    """
    if not pixels:
        return {}
    name = str(pixels.get("image_processor_type") or pixels.get("feature_extractor_type") or "ViTImageProcessor")
    processor = _PROCESSORS.get(re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name))
    if processor is None:
        raise NotSupported(f"its image processor {name} is not one of {', '.join(_PROCESSORS)}")
    if "auto_map" in pixels:
        raise NotSupported(
            "its auto_map names code of its own, so its steps are not known: remove auto_map if they are those of "
            f"{name}"
        )
    mean = triple(pixels.get("image_mean") or processor.mean, "image_mean")
    std = triple(pixels.get("image_std") or processor.std, "image_std")
    if not pixels.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # Our mean and deviation are of pixels in [0, 1]; those of transformers are of such pixels times the factor.
    factor = 255 * float(pixels.get("rescale_factor", 1 / 255)) if pixels.get("do_rescale", True) else 255.0
    if not math.isclose(factor, 1):
        mean, std = ((a / factor, b / factor, c / factor) for a, b, c in (mean, std))
    resample = pixels.get("resample", processor.resample)
    if resample not in RESAMPLE:
        known = " or ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise NotSupported(f"its resample {resample} is not {known}")
    eval_crop, eval_resize = _resize(pixels, processor, image_size)
    stated = {"mean": mean, "std": std, "interpolation": RESAMPLE[resample]}
    return dict(stated, eval_crop=eval_crop, eval_resize=eval_resize)


def _resize(pixels: Dict[str, Any], processor: _Processor, image_size: Any) -> Tuple[str, Optional[int]]:
    """Returns how evaluation resizes, `center` or `squash`, and to which side; None for the image size."""
    crops = pixels.get("do_center_crop", processor.crops)
    is_square, side = _side(pixels.get("size", processor.resize), is_square=processor.is_square)
    _, cropped = _side(pixels.get("crop_size"), is_square=True) if crops else (True, side)
    if not pixels.get("do_resize", True):
        if crops:
            raise NotSupported(
                "its do_resize is false, but its do_center_crop is true: a crop needs a resize before it"
            )
        return "center", None  # the images are of the model's size already
    if not is_square and not crops:
        raise NotSupported("its size is of the short side, and it does not crop: images would not be square")
    if cropped is not None and isinstance(image_size, int) and cropped != image_size:
        raise NotSupported(f"it makes images of {cropped} pixels, but the image_size of the model is {image_size}")
    return "squash" if is_square else "center", side


def _side(size: Any, *, is_square: bool) -> Tuple[bool, Optional[int]]:
    """Returns whether a size is of both sides, rather than of the short side, and its number of pixels."""
    if isinstance(size, dict):
        is_square = "shortest_edge" not in size
        sides = [size["height"], size["width"]] if is_square else [size["shortest_edge"]]
        if "longest_edge" in size:
            raise NotSupported(f"its size has a longest_edge of {size['longest_edge']}, which is not supported")
    else:
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) != 1:
        raise NotSupported(f"its size {' x '.join(map(str, sides))} is not square")
    return is_square, None if sides[0] is None else int(sides[0])


def triple(values: Any, key: str) -> Triple:
    """Returns a mean or standard deviation of three channels. Raises NotSupported if there are not three numbers."""
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
        raise NotSupported(f"its {key} is {values}: expected three numbers, one for each channel, as [0.5, 0.5, 0.5]")
    first, second, third = values
    return float(first), float(second), float(third)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

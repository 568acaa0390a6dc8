"""timm's names of plain ViTs, and what each name fixes beside the tensors.

Source: timm 1.0 `vision_transformer.py` and `deit.py`. The models of this table pool by the class token, have layer
norms of epsilon 1e-6 and erf GELU. Every other name of timm's is of another architecture, or is not known.
"""

from __future__ import annotations

import re
from typing import Dict, NamedTuple, Optional, Tuple


class TimmShape(NamedTuple):
    """Arguments of timm's VisionTransformer that a name stands for."""

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    patch_size: int


class TimmPixels(NamedTuple):
    """Preprocessing that timm's train.py and validate.py use if their arguments do not state another one."""

    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    crop_pct: float
    interpolation: str
    side: int
    """Side of the model's images in pixels."""


LAYER_NORM_EPS, GELU = 1e-6, "erf"

_SIZES = {
    (192, 12, 3, 4.0): "vit_tiny_patch16_224 vit_tiny_patch16_384 deit_tiny_patch16_224",
    (384, 12, 6, 4.0): "vit_small_patch8_224 vit_small_patch16_224 vit_small_patch16_384 vit_small_patch32_224 "
    "vit_small_patch32_384 vit_small_patch14_dinov2 flexivit_small deit_small_patch16_224 deit3_small_patch16_224 "
    "deit3_small_patch16_384",
    (384, 36, 6, 4.0): "vit_small_patch16_36x1_224",
    (512, 12, 8, 4.0): "deit3_medium_patch16_224",
    (768, 12, 12, 4.0): "vit_base_patch8_224 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224 "
    "vit_base_patch32_384 vit_base_patch14_dinov2 vit_base_patch16_224_miil flexivit_base deit_base_patch16_224 "
    "deit_base_patch16_384 deit3_base_patch16_224 deit3_base_patch16_384",
    (896, 12, 14, 4.0): "vit_base_patch16_plus_240 vit_base_patch32_plus_256",
    (1024, 24, 16, 4.0): "vit_large_patch14_224 vit_large_patch16_224 vit_large_patch16_384 vit_large_patch32_224 "
    "vit_large_patch32_384 vit_large_patch14_dinov2 flexivit_large deit3_large_patch16_224 deit3_large_patch16_384",
    (1280, 32, 16, 4.0): "vit_huge_patch14_224 deit3_huge_patch14_224",
    (1408, 40, 16, 48 / 11): "vit_giant_patch14_224",
    (1664, 48, 16, 64 / 13): "vit_gigantic_patch14_224",
    (64, 6, 2, 3.0): "test_vit",
}
_OLD_SUFFIXES = r"_(in21k|in21ft1k|sam|dino)$"
"""Suffixes that timm before 0.8 put behind the name of an architecture to name its weights."""


def _patch_size(name: str) -> int:
    match = re.search(r"_patch(\d+)", name)
    return int(match.group(1)) if match else 16


PLAIN_VITS: Dict[str, TimmShape] = {
    name: TimmShape(*size, patch_size=_patch_size(name)) for size, names in _SIZES.items() for name in names.split()
}
"""The shape of each plain ViT by timm's name."""


def plain_vit(architecture: str) -> Optional[TimmShape]:
    """Returns the shape of one of timm's plain ViTs, also by a name with a tag; None for another architecture."""
    name = architecture.partition(".")[0]
    return PLAIN_VITS.get(name) or PLAIN_VITS.get(re.sub(_OLD_SUFFIXES, "", name))


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CROPS = {160: 0.95, 240: 0.95, 256: 0.95, 384: 1.0, 518: 1.0}
"""timm's crop_pct of its plain ViTs by the side of their images, where it is not CROP."""
CROP = 0.9
"""timm's crop_pct of a ViT whose own `default_cfg` does not state another one: `_cfg` in `vision_transformer.py`."""
INTERPOLATION = "bicubic"
"""timm's filter of such a ViT."""


def default_pixels(architecture: str) -> Optional[TimmPixels]:
    """Returns the preprocessing that timm fixes for one of its plain ViTs; None for a name with a tag, which may have
    another one, or for another architecture. Source: `default_cfgs` in the modules above."""
    if architecture not in PLAIN_VITS:
        return None
    if architecture == "vit_base_patch16_224_miil":
        return TimmPixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.875, "bilinear", 224)
    number = re.search(r"_(\d+)$", architecture)
    others = {"flexivit": 240, "test": 160}
    side = int(number.group(1)) if number else others.get(architecture.partition("_")[0], 518)  # 518: dinov2
    is_facebooks = architecture.startswith("deit") or architecture.endswith("_dinov2")
    mean, std = _IMAGENET if is_facebooks or architecture == "vit_small_patch8_224" else _HALF  # the latter is DINO's
    return TimmPixels(mean, std, CROPS.get(side, CROP), INTERPOLATION, side)

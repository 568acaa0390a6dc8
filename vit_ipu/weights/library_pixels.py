"""How the ViTs of each library make pixels of images, assumed for a weights file that does not state it.

Sources:

- timm: see timm_models.py.
- transformers: `ViTImageProcessor`, in models/vit/image_processing_vit.py (the same in 4 and 5).
- torchvision: the presets of `ViT_*_Weights`, in models/vision_transformer.py. For 224 px they are those of
  `IMAGENET1K_V1`, which is `DEFAULT` for B/16, B/32, L/16 and L/32; H/14 has only SWAG's weights. Weights for 384, 512
  and 518 px are SWAG's. Other sides have the 256 : 224 of references/classification/train.py.
- mmpretrain: configs/vision_transformer, the same in mmclassification 0.x. All configs for 384 px agree:
  *_64xb64_in1k-384px.py. For 224 px they are those of *_64xb64_in1k.py and of MAE's fine-tuning, over the data sets
  imagenet_bs64_pil_resize_autoaug.py and imagenet_bs64_swin_224.py; the config for IPUs is another one (0.5, bilinear,
  without a margin), whose published file metafile.yml does not list.
- google: google-research/vision_transformer, the evaluation of vit_jax/input_pipeline.py, and vit_jax/preprocess.py for
  LiT. TensorFlow's filter does not average the pixels of an image that it shrinks; this program's does. big_vision,
  whose files look the same, has no one default: `resize_small(256)|central_crop(224)` in most of its configs for
  ImageNet, `resize(272)|central_crop(240)` in FlexiViT's.
- graphcore: graphcore/examples, vision/vit/pytorch/dataset/preprocess.py, whose images always have 224 px.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import Mapping, Optional, Tuple

from vit_ipu.weights import timm_models

Triple = Tuple[float, float, float]
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LibraryPixels:
    """One library's steps from an image to pixels; `mean` and `std` are of pixels in [0, 1]."""

    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"
    eval_crop: str = "center"
    """`center`, or `squash`, which resizes both sides whatever the image's aspect ratio."""
    crop: float = 1.0
    """Side of the model's images as a share of the side that an image is resized to."""
    crops: Mapping[int, float] = field(default_factory=dict)
    """That share by the side of the model's images, where it is another one."""
    sides: Mapping[int, LibraryPixels] = field(default_factory=dict)
    """The steps by the side of the model's images, where they are other ones."""
    models: Mapping[Tuple[int, int, int], LibraryPixels] = field(default_factory=dict)
    """The steps by width, patch size and side of the model's images, where they are other ones."""

    def of_model(self, *, width: int, patch_size: int, side: int) -> LibraryPixels:
        """Returns the steps for a model of this width and patch size, and of images of `side` pixels."""
        return self.models.get((width, patch_size, side)) or self.sides.get(side) or self

    def eval_resize(self, side: int) -> Optional[int]:
        """Returns the side in pixels that images of a model for `side` are resized to; None: `side` itself."""
        resized = floor(side / self.crops.get(side, self.crop))
        return None if resized == side else resized


TIMM = LibraryPixels(interpolation=timm_models.INTERPOLATION, crop=timm_models.CROP, crops=timm_models.CROPS)
HUGGINGFACE = LibraryPixels(eval_crop="squash")
_SWAG = LibraryPixels(_IMAGENET_MEAN, _IMAGENET_STD, interpolation="bicubic")
TORCHVISION = LibraryPixels(
    _IMAGENET_MEAN,
    _IMAGENET_STD,
    crop=224 / 256,
    sides={384: _SWAG, 512: _SWAG, 518: _SWAG},
    models={(1024, 16, 224): LibraryPixels(_IMAGENET_MEAN, _IMAGENET_STD, crop=224 / 242), (1280, 14, 224): _SWAG},
)
MMPRETRAIN = LibraryPixels(
    _IMAGENET_MEAN, _IMAGENET_STD, interpolation="bicubic", crop=224 / 256, sides={384: LibraryPixels()}
)
GOOGLE = LibraryPixels(eval_crop="squash")
GRAPHCORE = LibraryPixels(crop=224 / 256)

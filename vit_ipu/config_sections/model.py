"""Section `model` of a config."""

from __future__ import annotations

from typing import Any, Optional

from pydantic import Field, model_validator
from typing_extensions import Annotated, Literal

from vit_ipu.config_sections.types import DropRate, Name, Positive, PositiveFloat, Section
from vit_ipu.errors import suggest
from vit_ipu.variants import VARIANTS


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
    `hf-hub:owner/name`, an https address with `init_sha256`, or `package:quickstart`, the small ViT that comes with the
    program; null: random weights."""
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

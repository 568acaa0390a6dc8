"""Tables of the names that libraries give to a ViT's tensors, and the translation of a name from and to ours.

Our names, those of this program, are timm's. A table has a row for each module: our name, and the library's. `{}` is
the number of a block; `*` stands for weight and bias, `[kernel|bias]` for the library's names of weight and bias; a
triple is the query, key and value, which this program keeps as the thirds of one tensor. Sources: timm 1.0
`vision_transformer.py`; transformers 4 and 5 `modeling_vit.py`; torchvision `vision_transformer.py`; mmpretrain 1.2 and
mmclassification 0.x `vision_transformer.py`; the checkpoints of google-research/vision_transformer and big_vision;
graphcore/examples `vision/vit/pytorch/models/modules.py`.

D width, H heads, P patch side, K classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Pattern, Sequence, Tuple, Union

from torch import Tensor

from vit_ipu.weights import library_pixels
from vit_ipu.weights.library_pixels import LibraryPixels

_NUMBER = r"(0|[1-9][0-9]{0,3})"
"""Pattern of a block's number: no leading zeros and at most four digits, which bounds the work for a hostile file."""
Tensors = Dict[str, Tensor]
IMAGE_TOWERS = ("params/img/", "img/")
"""Prefixes of the image tower of a model of images and text (LiT). Its head, if there is one, is a projection to
`out_dim` numbers: big_vision/models/proj/image_text/two_towers.py and vit_jax/models_lit.py."""
Theirs = Union[str, Tuple[str, str, str]]


@dataclass(frozen=True)
class Naming:
    """One library's names, and how its ViT differs from the ViTs of other libraries."""

    name: str
    rows: Mapping[str, Theirs]
    """The library's name of each module, by our name."""
    library: str
    """Name of the library, for people."""
    pixels: LibraryPixels
    """The library's steps from an image to pixels, by default."""
    aliases: Sequence[Tuple[str, str]] = ()
    """Regular expressions that turn other spellings of a key into the spelling of `rows`, applied in order."""
    ignored: str = r"$^"
    """Regular expression of keys that do not take part in classification."""
    prefixes: Tuple[str, ...] = ()
    """If some keys start with one of these prefixes, the other keys are not weights."""
    flax: bool = False
    """Whether linear kernels are stored (in, out), convolutions (P, P, in, out), attention by head."""
    resize: str = "timm"
    """The rule by which the library resizes position embeddings: weights/position_embeddings.py."""
    layer_norm_eps: float = 1e-6
    gelu: str = "erf"
    fixes: Tuple[str, ...] = ()
    """Settings, of native.ASSUMABLE, that the library's code fixes for every model: the naming states them."""
    has_pre_logits: bool = True
    """Whether the library's classifier can have the representation layer."""
    pooler_apart: bool = False
    """Whether the layer in the place of the representation layer is left out if there is a head."""
    patterns: List[Tuple[Pattern[str], str, Optional[int]]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        for ours, theirs in self.rows.items():
            for third, name in enumerate(theirs if isinstance(theirs, tuple) else (theirs,)):
                for our_leaf, leaf in _leaves(name):
                    numbered = re.escape(leaf).replace(r"\{\}", _NUMBER)
                    pattern = re.compile(f"^{numbered}$")
                    self.patterns.append((pattern, ours.replace("*", our_leaf), third if theirs != name else None))

    def ours(self, key: str) -> Optional[Tuple[str, Optional[int]]]:
        """Returns our name for a key after aliases, and which third the key is; None for a key of another naming."""
        for pattern, name, third in self.patterns:
            match = pattern.match(key)
            if match is not None:
                return name.format(*match.groups()), third
        return None

    def theirs(self, name: str) -> Union[str, Tuple[str, ...], None]:
        """Returns the library's key, or three keys, for our name of a tensor; None if the library lacks the tensor."""
        number = re.search(r"\.(\d+)\.", name)
        general = name.replace(f".{number.group(1)}.", ".{}.", 1) if number else name
        leaf = "" if general in self.rows else general.rpartition(".")[2]
        row = self.rows.get(general if not leaf else general[: -len(leaf)] + "*")
        if row is None:
            return None
        index = number.group(1) if number else ""
        keys = tuple(dict(_leaves(part))[leaf].format(index) for part in (row if isinstance(row, tuple) else (row,)))
        return keys if isinstance(row, tuple) else keys[0]


def _leaves(name: str) -> List[Tuple[str, str]]:
    """Lists the tensors of a module's row: our leaf name, and the library's full name."""
    named = re.search(r"\[(\w+)\|(\w+)\]", name)
    if named is not None:
        return [
            ("weight", name.replace(named.group(0), named.group(1))),
            ("bias", name.replace(named.group(0), named.group(2))),
        ]
    return [(leaf, name.replace("*", leaf)) for leaf in ("weight", "bias")] if "*" in name else [("", name)]


# ---------------------------------------------------------------------------------------- the tables

_UNITS = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.*",
    "blocks.{}.norm1.*",
    "blocks.{}.attn.qkv.*",
    "blocks.{}.attn.proj.*",
    "blocks.{}.norm2.*",
    "blocks.{}.mlp.fc1.*",
    "blocks.{}.mlp.fc2.*",
    "norm.*",
    "pre_logits.fc.*",
    "head.*",
)

TIMM = Naming(
    name="timm",
    library="timm",
    pixels=library_pixels.TIMM,
    rows={name: name for name in (*_UNITS, "blocks.{}.ls1.gamma", "blocks.{}.ls2.gamma")},
    aliases=(
        (r"^model\.", ""),  # the prefix of a LightningModule
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # deit3
    ),
    ignored=r"(mask_token|masked_embed)$",  # of DINOv2, and of iBOT
    has_pre_logits=False,  # since timm 0.6
)

HUGGINGFACE = Naming(
    name="huggingface",
    library="transformers",
    pixels=library_pixels.HUGGINGFACE,
    rows={
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.*": "vit.embeddings.patch_embeddings.projection.*",
        "blocks.{}.norm1.*": "vit.encoder.layer.{}.layernorm_before.*",
        "blocks.{}.attn.qkv.*": (
            "vit.encoder.layer.{}.attention.attention.query.*",
            "vit.encoder.layer.{}.attention.attention.key.*",
            "vit.encoder.layer.{}.attention.attention.value.*",
        ),
        "blocks.{}.attn.proj.*": "vit.encoder.layer.{}.attention.output.dense.*",
        "blocks.{}.norm2.*": "vit.encoder.layer.{}.layernorm_after.*",
        "blocks.{}.mlp.fc1.*": "vit.encoder.layer.{}.intermediate.dense.*",
        "blocks.{}.mlp.fc2.*": "vit.encoder.layer.{}.output.dense.*",
        "norm.*": "vit.layernorm.*",
        "pre_logits.fc.*": "vit.pooler.dense.*",
        "head.*": "classifier.*",
    },
    aliases=(
        (r"^(embeddings|encoder|layers|layernorm|pooler)\.", r"vit.\1."),  # a ViTModel, without the classifier
        (r"^vit\.layers\.(\d+)\.attention\.q_proj\.", r"vit.encoder.layer.\1.attention.attention.query."),  # from 5.0
        (r"^vit\.layers\.(\d+)\.attention\.k_proj\.", r"vit.encoder.layer.\1.attention.attention.key."),
        (r"^vit\.layers\.(\d+)\.attention\.v_proj\.", r"vit.encoder.layer.\1.attention.attention.value."),
        (r"^vit\.layers\.(\d+)\.attention\.o_proj\.", r"vit.encoder.layer.\1.attention.output.dense."),
        (r"^vit\.layers\.(\d+)\.mlp\.fc1\.", r"vit.encoder.layer.\1.intermediate.dense."),
        (r"^vit\.layers\.(\d+)\.mlp\.fc2\.", r"vit.encoder.layer.\1.output.dense."),
        (r"^vit\.layers\.(\d+)\.layernorm_", r"vit.encoder.layer.\1.layernorm_"),
    ),
    ignored=r"^vit\.embeddings\.mask_token$",
    resize="huggingface",
    layer_norm_eps=1e-12,
    fixes=("pooling",),
    has_pre_logits=False,
    pooler_apart=True,  # the pooler belongs to ViTModel; ViTForImageClassification does not use it
)

TORCHVISION = Naming(
    name="torchvision",
    library="torchvision",
    pixels=library_pixels.TORCHVISION,
    rows={
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.*": "conv_proj.*",
        "blocks.{}.norm1.*": "encoder.layers.encoder_layer_{}.ln_1.*",
        "blocks.{}.attn.qkv.*": "encoder.layers.encoder_layer_{}.self_attention.in_proj_*",
        "blocks.{}.attn.proj.*": "encoder.layers.encoder_layer_{}.self_attention.out_proj.*",
        "blocks.{}.norm2.*": "encoder.layers.encoder_layer_{}.ln_2.*",
        "blocks.{}.mlp.fc1.*": "encoder.layers.encoder_layer_{}.mlp.0.*",
        "blocks.{}.mlp.fc2.*": "encoder.layers.encoder_layer_{}.mlp.3.*",
        "norm.*": "encoder.ln.*",
        "pre_logits.fc.*": "heads.pre_logits.*",
        "head.*": "heads.head.*",
    },
    aliases=((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),  # spellings of the published files
    resize="torchvision",
    fixes=("gelu", "pooling"),
)

MMPRETRAIN = Naming(
    name="mmpretrain",
    library="mmpretrain",
    pixels=library_pixels.MMPRETRAIN,
    rows={
        "cls_token": "backbone.cls_token",
        "pos_embed": "backbone.pos_embed",
        "patch_embed.proj.*": "backbone.patch_embed.projection.*",
        "blocks.{}.norm1.*": "backbone.layers.{}.ln1.*",
        "blocks.{}.attn.qkv.*": "backbone.layers.{}.attn.qkv.*",
        "blocks.{}.attn.proj.*": "backbone.layers.{}.attn.proj.*",
        "blocks.{}.ls1.gamma": "backbone.layers.{}.attn.gamma1.weight",
        "blocks.{}.norm2.*": "backbone.layers.{}.ln2.*",
        "blocks.{}.mlp.fc1.*": "backbone.layers.{}.ffn.layers.0.0.*",
        "blocks.{}.mlp.fc2.*": "backbone.layers.{}.ffn.layers.1.*",
        "blocks.{}.ls2.gamma": "backbone.layers.{}.ffn.gamma2.weight",
        "norm.*": "backbone.ln1.*",
        "pre_logits.fc.*": "head.layers.pre_logits.*",
        "head.*": "head.layers.head.*",
    },
    aliases=(
        (r"^(cls_token|pos_embed|patch_embed|layers|ln1)\b", r"backbone.\1"),  # a backbone by itself
        (r"\.attn\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),  # mmclassification up to 0.16
        (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.layers\.", ".ffn.layers."),
        (r"\.gamma2\.scale$", ".gamma2.weight"),
    ),
    ignored=r"^data_preprocessor\.",
    resize="mmpretrain",
)

GOOGLE = Naming(
    name="google",
    library="vit_jax",
    pixels=library_pixels.GOOGLE,
    rows={
        "cls_token": "cls",
        "pos_embed": "Transformer/posembed_input/pos_embedding",
        "patch_embed.proj.*": "embedding/[kernel|bias]",
        "blocks.{}.norm1.*": "Transformer/encoderblock_{}/LayerNorm_0/[scale|bias]",
        "blocks.{}.attn.qkv.*": (
            "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/query/[kernel|bias]",
            "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/key/[kernel|bias]",
            "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/value/[kernel|bias]",
        ),
        "blocks.{}.attn.proj.*": "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/out/[kernel|bias]",
        "blocks.{}.norm2.*": "Transformer/encoderblock_{}/LayerNorm_2/[scale|bias]",
        "blocks.{}.mlp.fc1.*": "Transformer/encoderblock_{}/MlpBlock_3/Dense_0/[kernel|bias]",
        "blocks.{}.mlp.fc2.*": "Transformer/encoderblock_{}/MlpBlock_3/Dense_1/[kernel|bias]",
        "norm.*": "Transformer/encoder_norm/[scale|bias]",
        "pre_logits.fc.*": "pre_logits/[kernel|bias]",
        "head.*": "head/[kernel|bias]",
    },
    aliases=(  # big_vision
        (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),
        (r"/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/"),
        (r"/MlpBlock_0/", "/MlpBlock_3/"),
        (r"/LayerNorm_1/", "/LayerNorm_2/"),
    ),
    prefixes=("opt/target/", *IMAGE_TOWERS, "params/"),
    flax=True,
    resize="google",
    gelu="tanh",
    fixes=("gelu", "layer_norm_eps", "pooling"),
)

GRAPHCORE = Naming(
    name="graphcore",
    library="graphcore/examples",
    pixels=library_pixels.GRAPHCORE,
    rows={
        "cls_token": "model.embeddings.cls_token",
        "pos_embed": "model.embeddings.position_embeddings",
        "patch_embed.proj.*": "model.embeddings.patch_embeddings.*",
        "blocks.{}.norm1.*": "model.encoder.layer.{}.attention_norm.*",
        "blocks.{}.attn.qkv.*": (
            "model.encoder.layer.{}.attn.query.*",
            "model.encoder.layer.{}.attn.key.*",
            "model.encoder.layer.{}.attn.value.*",
        ),
        "blocks.{}.attn.proj.*": "model.encoder.layer.{}.attn.out.*",
        "blocks.{}.norm2.*": "model.encoder.layer.{}.ffn_norm.*",
        "blocks.{}.mlp.fc1.*": "model.encoder.layer.{}.ffn.fc1.*",
        "blocks.{}.mlp.fc2.*": "model.encoder.layer.{}.ffn.fc2.*",
        "norm.*": "model.encoder.encoder_norm.*",
        "pre_logits.fc.*": "model.representation.representation_layer.*",
        "head.*": "model.head.*",
    },
    aliases=((r"^(embeddings|encoder|representation|head)\.", r"model.\1."),),
    gelu="tanh",  # as computed on the IPU
    fixes=("gelu", "layer_norm_eps", "pooling"),
)

NAMINGS: Dict[str, Naming] = {
    naming.name: naming for naming in (TIMM, HUGGINGFACE, TORCHVISION, MMPRETRAIN, GOOGLE, GRAPHCORE)
}

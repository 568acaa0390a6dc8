"""The Vision Transformer, written for one device.

The paper is "An Image is Worth 16x16 Words" (arXiv:2010.11929); parameter names are timm's. Shapes: B batch,
C channels (3), S image side, N patches, T = N + 1 tokens, D width, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ipu.config import ModelConfig

_GELU = {"erf": "none", "tanh": "tanh"}


class ViT(nn.Module):
    """Vision Transformer from normalised images (B, 3, S, S) to the logits (B, num_classes) of the class token.

    `attention` is the kernel to build: "explicit" or "fused"; `layers` are other classes for the layers of which a
    device has faster implementations. Weights are initialised from torch's global
    generator as in the ViT paper and DeiT: truncated normal of deviation 0.02 for linear layers and the
    position embedding, fan-in scaled for the patch embedding, zeros for biases and class token; the head's as
    `model.head_init` says.
    """

    def __init__(self, config: ModelConfig, *, attention: str = "fused", layers: Optional[Layers] = None) -> None:
        super().__init__()
        width = config.width
        layers = layers or Layers(attention=ATTENTION[attention])
        self.patch_embed = layers.patch_embed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, width))
        self.pos_drop = nn.Dropout(config.dropout)
        drop_paths = [config.drop_path * index / max(config.depth - 1, 1) for index in range(config.depth)]
        kinds = [Block] * (config.depth - 1) + [layers.last_block]
        self.blocks = nn.ModuleList([kind(config, rate, layers) for kind, rate in zip(kinds, drop_paths)])
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pre_logits = PreLogits(width, config.representation_size) if config.representation_size else nn.Identity()
        self.head = nn.Linear(config.representation_size or width, config.num_classes)
        self._initialise(config)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)  # (B, N, D)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, T, D)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)[:, 0]  # (B, D)
        return self.head(self.pre_logits(x))  # (B, num_classes)

    def _initialise(self, config: ModelConfig) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        nn.init.trunc_normal_(projection.weight, std=1 / math.sqrt(projection.weight[0].numel()))
        projection.bias.data.zero_()  # type: ignore[union-attr]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if config.head_init == "xavier":
            nn.init.xavier_normal_(self.head.weight)
        elif config.head_init == "zero":
            nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, config.head_bias_init)


class PatchEmbed(nn.Module):
    """Patch embedding, (B, 3, S, S) to (B, N, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """A pre-norm transformer block, (B, T, D) to (B, T, D)."""

    def __init__(self, config: ModelConfig, drop_path: float, layers: Layers) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = layers.attention(config)
        self.drop_path1 = DropPath(drop_path)
        self.middle = nn.Identity()  # where a backend can hook in between attention and MLP
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = layers.mlp(config)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(x + self.drop_path1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ExplicitAttention(nn.Module):
    """Multi-head self-attention with softmax(QK)V written out, which compiles well for IPUs."""

    linear: Type[nn.Linear] = nn.Linear
    """Class of the linear layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = (config.width // config.num_heads) ** -0.5
        self.qkv = self.linear(config.width, 3 * config.width)
        self.attn_drop = nn.Dropout(config.attention_dropout)
        self.proj = self.linear(config.width, config.width)
        self.proj_drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1)
        mixed = self.attend(*self.split(qkv))  # (B, H, T, D/H)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))

    def split(self, qkv: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Splits (B, T, 3, H, D/H) into query, key and value, each (B, H, T, D/H)."""
        qkv = qkv.permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]  # slices: PopTorch turns unbind into gathers

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1)  # (B, H, T, T)
        return self.attn_drop(weights) @ value


class FusedAttention(ExplicitAttention):
    """Multi-head self-attention by scaled_dot_product_attention, for which CPUs and GPUs have a kernel."""

    def split(self, qkv: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        query, key, value = qkv.unbind(2)  # whose gradients are written once, in the order in which `qkv` lies
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


ATTENTION: Dict[str, Type[ExplicitAttention]] = {"explicit": ExplicitAttention, "fused": FusedAttention}


class MLP(nn.Module):
    """Two linear layers with GELU between, (B, T, D) to (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = nn.GELU(approximate=_GELU[config.gelu])
        self.drop1 = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.drop2 = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


@dataclass(frozen=True)
class Layers:
    """Classes of the layers of which a device may have its own; they have the parameters and the results of these."""

    patch_embed: Type[PatchEmbed] = PatchEmbed
    attention: Type[ExplicitAttention] = FusedAttention
    mlp: Type[MLP] = MLP
    last_block: Type[Block] = Block
    """Class of the last block, of whose outputs only the class token's is used."""


class PreLogits(nn.Module):
    """The representation layer of pre-training, (B, D) to (B, representation_size)."""

    def __init__(self, width: int, representation_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drops the complete branch of a sample and scales the kept branches up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = torch.full((x.shape[0], 1, 1), keep, dtype=x.dtype, device=x.device).bernoulli()
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"

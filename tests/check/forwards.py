"""118 forward passes that Vision Transformers and programs around them make, each as a function of its inputs.

The names are those of vit_forwards.tsv, which says what PopTorch 3.3/3.4 answers; its first lines name the source.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Function(nn.Module):
    """A module whose forward is `function`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Case(NamedTuple):
    """A module, or a function, and the inputs that it is called with."""

    forward: Callable[..., Any]
    inputs: Tuple[Any, ...]

    @property
    def module(self) -> nn.Module:
        return self.forward if isinstance(self.forward, nn.Module) else Function(self.forward)


X = torch.rand(2, 5, 8)
"""Tokens (B, T, D)."""
H = torch.rand(2, 2, 5, 4)
"""Heads (B, H, T, D/H)."""
I = torch.rand(2, 3, 8, 8)  # noqa: E741
"""Images."""
L = torch.tensor([1, 0])
"""Labels."""
Z = torch.rand(2, 4)
"""Logits."""
SOFT = torch.rand(2, 4).softmax(-1)
"""Soft targets."""
N = torch.arange(6)
"""Integers."""


def qkv(x: Tensor) -> Any:
    return x.reshape(2, 5, 2, 1, 4).permute(2, 0, 3, 1, 4)


def drop_path(mask: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: x / 0.9 * mask(x)


def attend(x: Tensor, **arguments: Any) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, **arguments)


def attention(need_weights: bool, train: bool) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        layer = nn.MultiheadAttention(8, 2, batch_first=True, device=x.device)
        return layer.train(train)(x, x, x, need_weights=need_weights)[0]

    return run


def changed(x: Tensor, change: Callable[[Tensor], Any]) -> Tensor:
    copy = x.clone()
    change(copy)
    return copy


def assign(x: Tensor) -> None:
    x[:, 0] = 1.0


def put(x: Tensor) -> None:
    x[torch.tensor([0, 1], device=x.device)] = 0.0


def quantile_like(x: Tensor) -> Tensor:
    x -= 0.5
    x /= 0.2
    return x


def permuted_patches(x: Tensor) -> Tensor:
    return x.reshape(2, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 4, 48)


def einsum(equation: str) -> Callable[..., Tensor]:
    return lambda *x: torch.einsum(equation, *x)


def resized(**arguments: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, **arguments)


def conv(cls: Any, *arguments: Any, **options: Any) -> nn.Module:
    return cls(*arguments, **options)


FORWARDS: Dict[str, Case] = {
    "Conv2d patchify": Case(nn.Conv2d(3, 8, 4, 4), (I,)),
    "Linear": Case(nn.Linear(8, 4), (X,)),
    "LayerNorm": Case(nn.LayerNorm(8), (X,)),
    "LayerNorm no affine": Case(nn.LayerNorm(8, elementwise_affine=False), (X,)),
    "gelu none": Case(F.gelu, (X,)),
    "gelu tanh": Case(lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "quick gelu": Case(lambda x: x * torch.sigmoid(1.702 * x), (X,)),
    "silu": Case(F.silu, (X,)),
    "softmax": Case(lambda x: x.softmax(-1), (X,)),
    "matmul 4d": Case(lambda x: x @ x.transpose(-2, -1), (H,)),
    "q,k,v unbind": Case(lambda x: qkv(x).unbind(0), (X,)),
    "qkv chunk": Case(lambda x: sum(x.chunk(2, -1)), (X,)),
    "SDPA": Case(attend, (H,)),
    "SDPA dropout": Case(lambda x: attend(x, dropout_p=0.1), (H,)),
    "SDPA float mask": Case(lambda x, mask: attend(x, attn_mask=mask), (H, torch.zeros(5, 5))),
    "SDPA causal": Case(lambda x: attend(x, is_causal=True), (H,)),
    "MultiheadAttention train need_weights": Case(attention(True, True), (X,)),
    "MultiheadAttention train no weights": Case(attention(False, True), (X,)),
    "MultiheadAttention eval (fast path off on ipu)": Case(attention(False, False), (X,)),
    "TransformerEncoderLayer train": Case(nn.TransformerEncoderLayer(8, 2, 16).train(), (X,)),
    "TransformerEncoderLayer eval": Case(nn.TransformerEncoderLayer(8, 2, 16, norm_first=True).eval(), (X,)),
    "dropout": Case(nn.Dropout(0.1).train(), (X,)),
    "dropout eval": Case(nn.Dropout(0.1).eval(), (X,)),
    "droppath bernoulli_": Case(drop_path(lambda x: x.new_empty(2, 1, 1).bernoulli_(0.9)), (X,)),
    "droppath rand/floor_": Case(drop_path(lambda x: (0.9 + torch.rand(2, 1, 1, device=x.device)).floor_()), (X,)),
    "droppath bernoulli(tensor)": Case(
        drop_path(lambda x: torch.bernoulli(torch.full((2, 1, 1), 0.9, device=x.device))), (X,)
    ),
    "native_dropout": Case(lambda x: torch.native_dropout(x, 0.1, True)[0], (X,)),
    "cls expand + cat": Case(
        lambda x: torch.cat([torch.zeros(1, 1, 8, device=x.device).expand(2, -1, -1), x], 1), (X,)
    ),
    "cls select": Case(lambda x: x[:, 0], (X,)),
    "mean pool": Case(lambda x: x.mean(1), (X,)),
    "strided slice": Case(lambda x: x[:, ::2], (X,)),
    "index tensor": Case(lambda x: x[:, torch.tensor([0, 2], device=x.device)], (X,)),
    "index_select": Case(lambda x: x.index_select(1, torch.tensor([0, 2], device=x.device)), (X,)),
    "gather": Case(lambda x: x.gather(1, torch.zeros(2, 2, 8, dtype=torch.long, device=x.device)), (X,)),
    "argsort (patch drop)": Case(lambda x: x[:, :, 0].argsort(1), (X,)),
    "topk": Case(lambda x: x.topk(2, 1).values, (X,)),
    "sort": Case(lambda x: x.sort(1).values, (X,)),
    "boolean mask index": Case(lambda x: x[x > 0.5], (X,)),
    "nonzero": Case(lambda x: x.nonzero(), (X,)),
    "masked_fill": Case(lambda x: x.masked_fill(x > 0.5, 0.0), (X,)),
    "where": Case(lambda x: torch.where(x > 0.5, x, x * 2), (X,)),
    "einsum bhqd,bhkd": Case(einsum("bhqd,bhkd->bhqk"), (H, H)),
    "einsum repeated": Case(einsum("bii->bi"), (X[:, :5, :5],)),
    "roll": Case(lambda x: x.roll(1, 1), (X,)),
    "flip": Case(lambda x: x.flip(1), (X,)),
    "F.unfold patches": Case(lambda x: F.unfold(x, 4, stride=4), (I,)),
    "Tensor.unfold patches": Case(lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4), (I,)),
    "reshape patches": Case(permuted_patches, (I,)),
    "interpolate nearest": Case(resized(scale_factor=2), (I,)),
    "interpolate bilinear x2": Case(resized(scale_factor=2, mode="bilinear"), (I,)),
    "interpolate bicubic size": Case(resized(size=(12, 12), mode="bicubic"), (I,)),
    "interpolate bicubic antialias": Case(resized(size=(4, 4), mode="bicubic", antialias=True), (I,)),
    "adaptive_avg_pool2d": Case(nn.AdaptiveAvgPool2d(2), (I,)),
    "batch_norm train": Case(nn.BatchNorm2d(3).train(), (I,)),
    "group_norm": Case(nn.GroupNorm(1, 3), (I,)),
    "F.normalize": Case(lambda x: F.normalize(x, dim=-1), (X,)),
    "RMSNorm by hand": Case(lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), (X,)),
    "uint8 -> normalise": Case(lambda x: (x.float() / 255 - 0.5) / 0.5, (I.byte(),)),
    "uint8 sub_ in place": Case(lambda x: quantile_like(x.float()), (I.byte(),)),
    "cross_entropy": Case(F.cross_entropy, (Z, L)),
    "cross_entropy label_smoothing": Case(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), (Z, L)),
    "cross_entropy soft targets": Case(F.cross_entropy, (Z, SOFT)),
    "soft CE by hand": Case(lambda z, y: (-y * z.log_softmax(-1)).sum(-1).mean(), (Z, SOFT)),
    "BCE with logits": Case(F.binary_cross_entropy_with_logits, (Z, SOFT)),
    "mse_loss": Case(F.mse_loss, (Z, SOFT)),
    "kl_div": Case(lambda z, y: F.kl_div(z.log_softmax(-1), y, reduction="batchmean"), (Z, SOFT)),
    "mixup on device": Case(lambda x: 0.3 * x + 0.7 * x.flip(0), (I,)),
    "one_hot": Case(lambda y: F.one_hot(y, 4), (L,)),
    "accuracy argmax eq": Case(lambda z, y: (z.argmax(-1) == y).float().mean(), (Z, L)),
    "top5": Case(lambda z, y: (z.topk(2)[1][:, :2] == y.unsqueeze(1)).any(1).float().mean(), (Z, L)),
    "linspace in forward": Case(lambda x: x * torch.linspace(0, 1, 8, device=x.device), (X,)),
    "arange embedding": Case(
        lambda x: x + F.embedding(torch.arange(5, device=x.device), torch.zeros(9, 8, device=x.device)), (X,)
    ),
    "layer scale in place": Case(lambda x: x.clone().mul_(0.1), (X,)),
    "x += y": Case(lambda x: changed(x, lambda y: y.add_(x)), (X,)),
    "logical_not": Case(lambda x: ~(x > 0.5), (X,)),
    "clamp": Case(lambda x: x.clamp(0, 1), (X,)),
    "erf": Case(torch.erf, (X,)),
    "erfinv": Case(torch.erfinv, (X,)),
    "trunc_normal_": Case(lambda x: changed(x, nn.init.trunc_normal_), (X,)),
    "triu mask": Case(lambda x: x[:, :, :5] + torch.ones(5, 5, device=x.device).triu(), (X,)),
    "tril mask": Case(lambda x: x[:, :, :5] + torch.ones(5, 5, device=x.device).tril(), (X,)),
    "repeat": Case(lambda x: x.repeat(1, 2, 1), (X,)),
    "repeat_interleave int": Case(lambda x: x.repeat_interleave(2, 1), (X,)),
    "cumsum": Case(lambda x: x.cumsum(1), (X,)),
    "std": Case(lambda x: x.std(-1), (X,)),
    "var_mean": Case(lambda x: torch.var_mean(x, -1)[0], (X,)),
    "norm": Case(lambda x: x.norm(dim=-1), (X,)),
    "grid_sample": Case(
        lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2, device=x.device), align_corners=False), (I,)
    ),
    "fft2": Case(lambda x: torch.view_as_real(torch.fft.fft2(x))[..., 0], (I,)),
    "lerp": Case(lambda x: torch.lerp(x, x, 0.5), (X,)),
    "outer (rope)": Case(lambda x: torch.outer(x[0, :, 0], x[0, 0]).cos(), (X,)),
    "complex rope": Case(lambda x: torch.view_as_complex(x.reshape(2, 5, 4, 2)), (X,)),
    "pad": Case(lambda x: F.pad(x, (1, 1)), (X,)),
    "pixel_shuffle": Case(lambda x: F.pixel_shuffle(x, 2), (torch.rand(1, 4, 2, 2),)),
    "diagonal": Case(lambda x: x.diagonal(dim1=1, dim2=2), (X,)),
    "nan_to_num": Case(lambda x: x.nan_to_num(), (X,)),
    "tensor_split": Case(lambda x: x.tensor_split(2, 1)[0] * 2, (X,)),
    "channels_last conv": Case(
        lambda x: F.conv2d(x.contiguous(memory_format=torch.channels_last), torch.zeros(8, 3, 4, 4, device=x.device)),
        (I,),
    ),
    "int64 arithmetic": Case(lambda n: n * 2 + 1, (N,)),
    "bfloat16": Case(lambda x: x.bfloat16() * 2, (X,)),
    "half": Case(lambda x: x.half() @ x.half().transpose(1, 2), (X,)),
    "index_put_": Case(lambda x: changed(x, put), (X,)),
    "slice assign": Case(lambda x: changed(x, assign), (X,)),
    "scatter_ mask": Case(
        lambda x: torch.zeros_like(x).scatter_(1, torch.zeros(2, 1, 8, dtype=torch.long, device=x.device), 1.0), (X,)
    ),
    "select_scatter": Case(lambda x: x.select_scatter(x[:, 0], 1, 1), (X,)),
    "swapaxes": Case(lambda x: x.swapaxes(0, 1) + 1, (X,)),
    "movedim": Case(lambda x: x.movedim(0, 2) + 1, (X,)),
    "nn.Flatten": Case(nn.Flatten(), (X,)),
    "unflatten": Case(lambda x: x.unflatten(2, (2, 4)) + 1, (X,)),
    "conv_transpose (MAE dec.)": Case(nn.ConvTranspose2d(3, 4, 2, 2), (I,)),
    "DepthwiseConv": Case(nn.Conv2d(3, 3, 3, groups=3), (I,)),
    "Tensor.T": Case(lambda x: x.T + 1, (Z,)),
    "pow scalar": Case(lambda x: x**2, (X,)),
    "exp/log/log1p": Case(lambda x: x.exp().log().log1p(), (X,)),
    "all/any": Case(lambda x: (x > 0).all() & (x > 1).any(), (X,)),
    "logsumexp": Case(lambda x: x.logsumexp(-1), (X,)),
    "std_mean": Case(lambda x: torch.std_mean(x, -1)[0], (X,)),
    "item()": Case(lambda x: x * x.sum().item(), (X,)),
}

"""Trains timm's and transformers' ViTs by a plain loop in float32, with the weights and the recipe of a config.

Nothing of the package trains here: the models, the loss, the order of the images and the loop are others'. Only the
config, the weights' file and the files of the images are the same. Images are resized by Pillow once, in memory.
A config that asks for more than the loop has is refused.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from functools import partial
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers
from command import run_command
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from vit_ipu.config import Config
from vit_ipu.config_file import load_config
from vit_ipu.data.sources.registry import open_source
from vit_ipu.weights.fetch import locate

PEERS = ("timm", "transformers")
_NAMES = (
    (r"^(cls_token)", r"vit.embeddings.\1"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"^blocks\.(\d+)\.", r"vit.layers.\1."),
    (r"\.attn\.([qkv])\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
)
"""Patterns of timm's names, and what transformers 5 has in their place."""
_FOLLOWED = {
    "model": "variant width depth num_heads patch_size mlp_ratio image_size num_classes gelu layer_norm_eps attention "
    "init init_sha256",
    "data": "source path eval_path holdout download num_train num_eval crop mean std interpolation horizontal_flip "
    "transfer num_workers on_error",
    "optim": "optimizer learning_rate layer_decay weight_decay label_smoothing warmup_updates momentum",
}
"""The keys of a config that the loop follows, or that change no image and no update."""
_CHUNK = 500
"""Images of an evaluation that are predicted at a time."""


def main() -> None:
    """Prints the summary of a fine-tune as JSON, as `vit-ipu train --json` does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("config")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the config")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    print(json.dumps(finetune(arguments.peer, config, arguments.device, arguments.seed)))


def finetune(peer: str, config: Config, device: str, seed: int) -> Dict[str, Any]:
    refuse_others(config)
    start = time.monotonic()
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    (images, labels), held_out = (arrays(config, split, device) for split in ("train", "eval"))
    model = build(peer, config).to(device)
    compiled = torch.compile(model) if device == "cuda" else model
    updates, size = config.total_updates(len(images)), config.pipeline.global_batch_size
    optimizer, schedule = optimizer_of(model, config, updates)
    model.train()
    for chosen in batches(len(images), size, updates):
        pixels = normalized(images[chosen], config)
        flips = torch.rand(size, device=device) < config.data.horizontal_flip
        pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
        loss = F.cross_entropy(compiled(pixels), labels[chosen], label_smoothing=config.optim.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    top1, top5 = evaluate(compiled, *held_out, config)
    return {"top1": top1, "top5": top5, "samples": updates * size, "seconds": time.monotonic() - start}


def refuse_others(config: Config) -> None:
    """Ends the program if the config sets a key, other than to its default, that the loop does not follow."""
    for name, followed in _FOLLOWED.items():
        section = getattr(config, name)
        for key in sorted(section.model_fields_set - set(followed.split())):
            if getattr(section, key) != type(section).model_fields[key].default:
                sys.exit(f"{name}.{key}: the plain loop of peer_finetune.py has nothing like it")
    for key, value, known in (
        ("data.crop", config.data.crop, ["center"]),
        ("optim.optimizer", config.optim.optimizer, ["sgd", "adamw"]),
        ("run.early_stopping", config.run.early_stopping, [None]),
    ):
        if value not in known:
            sys.exit(f"{key} is {value!r}; the plain loop of peer_finetune.py only has {' or '.join(map(repr, known))}")


def arrays(config: Config, split: str, device: str) -> Tuple[Tensor, Tensor]:
    """Returns all images of a split, (N, 3, S, S) as bytes, and the labels (N,)."""
    source, side = open_source(config.data, config.model, split), config.model.image_size
    middle = Compose([Resize(side, InterpolationMode(config.data.interpolation)), CenterCrop(side)])
    pixels = np.stack([np.asarray(middle(source.image(index).convert("RGB"))) for index in range(len(source))])
    labels = torch.from_numpy(np.asarray(source.labels)).long()
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device), labels.to(device)


def normalized(images: Tensor, config: Config) -> Tensor:
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    return (images.float() / 255 - mean) / std


def batches(count: int, size: int, updates: int) -> Iterator[Tensor]:
    """Yields the indices of each update; every epoch has another order, and leaves out what does not fill a batch."""
    if count < size:
        sys.exit(f"{count} training images do not fill a batch of {size}: set a smaller pipeline.global_batch_size")
    made = 0
    while made < updates:
        order = torch.randperm(count)
        for chosen in order.split(size)[: min(count // size, updates - made)]:
            made += 1
            yield chosen


def build(peer: str, config: Config) -> nn.Module:
    """Returns the peer's model: fresh as timm makes it, or with the config's weights and a head of zeros."""
    model = config.model
    shape = {"img_size": model.image_size, "patch_size": model.patch_size, "embed_dim": model.width}
    ours = timm.models.VisionTransformer(
        depth=model.depth,
        num_heads=model.num_heads,
        num_classes=model.num_classes,
        mlp_ratio=model.mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=model.layer_norm_eps),
        act_layer=lambda: nn.GELU(approximate="tanh" if model.gelu == "tanh" else "none"),
        **shape,
    )
    if model.init is not None:
        _load(ours, model.init, [model.image_size // model.patch_size] * 2)
    return ours if peer == "timm" else _Transformers(ours, config)


def _load(model: nn.Module, source: str, grid: List[int]) -> None:
    """Loads a file of timm's names without a head; the position embedding is resized to the grid."""
    weights = {name: tensor.float() for name, tensor in load_file(str(locate(source).path)).items()}
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], grid)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == {"head.weight", "head.bias"}, missing
    assert not unexpected, unexpected
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)


class _Transformers(nn.Module):
    """The ViT of transformers with the tensors of timm's; returns its logits."""

    def __init__(self, source: Any, config: Config) -> None:
        super().__init__()
        model = config.model
        self.model = transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=model.width,
                num_hidden_layers=model.depth,
                num_attention_heads=model.num_heads,
                intermediate_size=model.mlp_width,
                hidden_act="gelu_pytorch_tanh" if model.gelu == "tanh" else "gelu",
                layer_norm_eps=model.layer_norm_eps,
                image_size=model.image_size,
                patch_size=model.patch_size,
                num_labels=model.num_classes,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.model.load_state_dict(dict(pair for item in source.state_dict().items() for pair in _renamed(*item)))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits  # type: ignore[no-any-return]

    def group_matcher(self, coarse: bool) -> Dict[str, Any]:
        """Returns the layers as timm's models do, for timm's layer decay; the last norm belongs to the last block."""
        last = (r"model\.vit\.layernorm\.", (99999,))
        return {"stem": r"model\.vit\.embeddings\.", "blocks": [(r"model\.vit\.layers\.(\d+)\.", None), last]}


def _renamed(name: str, tensor: Tensor) -> Iterator[Tuple[str, Tensor]]:
    """Yields the names that transformers 5 has for a tensor of timm's ViT, with the tensors."""
    if ".qkv." in name:
        for letter, part in zip("qkv", tensor.chunk(3)):
            yield from _renamed(name.replace(".qkv.", f".{letter}."), part)
        return
    for timms, theirs in _NAMES:
        name = re.sub(timms, theirs, name)
    yield name, tensor


def optimizer_of(
    model: nn.Module, config: Config, total: int
) -> Tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Returns the config's SGD or AdamW, and its schedule over `total` updates: a linear warmup, then half a cosine."""
    optim = config.optim
    exempt = [name for name, parameter in model.named_parameters() if "pos" in name or "cls_token" in name]
    groups = param_groups_layer_decay(model, optim.weight_decay, exempt, layer_decay=optim.layer_decay or 1.0)
    for group in groups:
        group["lr"] = optim.learning_rate * group["lr_scale"]
    made: torch.optim.Optimizer = torch.optim.SGD(groups, lr=optim.learning_rate, momentum=optim.momentum)
    if optim.optimizer == "adamw":
        made = torch.optim.AdamW(groups, lr=optim.learning_rate)

    def factor(update: int) -> float:
        if update < optim.warmup_updates:
            return (update + 1) / optim.warmup_updates
        return 0.5 * (1 + math.cos(math.pi * (update - optim.warmup_updates) / max(1, total - optim.warmup_updates)))

    return made, torch.optim.lr_scheduler.LambdaLR(made, factor)


def evaluate(model: Any, images: Tensor, labels: Tensor, config: Config) -> Tuple[float, float]:
    """Returns top-1 and top-5 in per cent."""
    hits = torch.zeros(2, device=images.device)
    with torch.inference_mode():
        for part, wanted in zip(images.split(_CHUNK), labels.split(_CHUNK)):
            ranked = model(normalized(part, config)).topk(5, dim=1).indices == wanted[:, None]
            hits += torch.stack([ranked[:, 0].sum(), ranked.any(dim=1).sum()])
    top1, top5 = (100 * hits / len(images)).tolist()
    return top1, top5


if __name__ == "__main__":
    run_command(main)

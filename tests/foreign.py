"""Models made by other libraries, and weights under the names that these libraries publish."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from vit_ipu.model import ViT
from vit_ipu.weights.describe import model_config
from vit_ipu.weights.read import read_weights

SIZES = [("tiny", 16), ("small", 16), ("base", 16), ("base", 32), ("large", 16)]
SHAPES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def randomise(model: nn.Module, std: float = 0.02) -> nn.Module:
    """Makes all parameters random, including those that libraries initialise to zero or one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln" in name or name.endswith("gamma"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                nn.init.normal_(parameter, std=std)
    return model


def timm_model(size, patch, pixels, folder: Path, load=None):
    """Returns a random timm model and the file with its weights; given `load`, the timm model that reads this file."""
    import timm

    torch.manual_seed(0)
    arguments = {"pretrained": False, "img_size": pixels, "num_classes": 5}
    if load is not None:
        name = f"vit_{size}_patch{patch}_224"
        return timm.create_model(name, checkpoint_path=str(load), **arguments).eval(), load
    model = randomise(timm.create_model(f"vit_{size}_patch{patch}_224", **arguments).eval())
    save_file(model.state_dict(), str(folder / "timm.safetensors"))
    return model, folder / "timm.safetensors"


def huggingface_model(size, patch, pixels, folder: Path, load=None, classes=("a", "b", "c", "d", "e")):
    """Returns a random transformers model and its folder; given `load`, the transformers model that reads this folder.

    On Python 3.8 this is an older transformers than on newer versions of Python.
    """
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    if load is not None:
        from transformers import AutoModelForImageClassification

        return logits_of(AutoModelForImageClassification.from_pretrained(str(load)).eval()), load
    width, depth, heads = SHAPES[size]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=pixels,
        patch_size=patch,
        id2label=dict(enumerate(classes)),
        label2id={name: label for label, name in enumerate(classes)},
    )
    model = randomise(ViTForImageClassification(config).eval())
    model.save_pretrained(str(folder / "huggingface"))
    return logits_of(model), folder / "huggingface"


def logits_of(model):
    return lambda images: model(images).logits


def torchvision_model(size, patch, pixels, folder: Path, load=None):
    """Returns a random torchvision model and its file; given `load`, the torchvision model that reads this file."""
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    width, depth, heads = SHAPES[size]
    model = VisionTransformer(pixels, patch, depth, heads, width, 4 * width, num_classes=5).eval()
    if load is not None:
        model.load_state_dict(torch.load(str(load), weights_only=True))
        return model, load
    randomise(model)
    save_file(model.state_dict(), str(folder / "torchvision.safetensors"))
    return model, folder / "torchvision.safetensors"


def native_model(source: str, num_heads=None) -> ViT:
    """Returns our ViT with the weights of a file or folder; `num_heads` is stated for files that do not state it."""
    weights = read_weights(source, trust_pickle=True)
    model = ViT(model_config(weights, num_heads=num_heads)).eval()
    model.load_state_dict(weights.tensors)
    return model


def assert_same_logits(theirs, ours, pixels, bound=1e-5, compare_epsilon=False):
    """Asserts that the logits of two images differ by at most `bound`."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        a, b = theirs(images), ours(images)
    assert a.std() > 0.01
    assert float((a - b).abs().max()) <= bound, f"{float((a - b).abs().max())} apart"


def google_arrays(state, *, num_heads, big_vision=False):
    """Returns a checkpoint of google-research/vision_transformer, or of big_vision, under its published names."""
    width = state["cls_token"].shape[-1]
    head_width = width // num_heads
    attention, mlp, norm2 = (
        ("MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_1")
        if big_vision
        else (
            "MultiHeadDotProductAttention_1",
            "MlpBlock_3",
            "LayerNorm_2",
        )
    )
    arrays = {
        "cls": state["cls_token"],
        "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for ours, theirs in (("head", "head"), ("pre_logits.fc", "pre_logits")):
        if ours + ".weight" in state:
            arrays[theirs + "/kernel"] = state[ours + ".weight"].T
            arrays[theirs + "/bias"] = state[ours + ".bias"]
    depth = 1 + max(int(re.search(r"blocks\.(\d+)", key).group(1)) for key in state if key.startswith("blocks."))
    for index in range(depth):
        block, to = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        for third, name in enumerate(("query", "key", "value")):
            rows = slice(third * width, (third + 1) * width)
            kernel = state[block + "attn.qkv.weight"][rows].T.reshape(width, num_heads, head_width)
            arrays[f"{to}{attention}/{name}/kernel"] = kernel
            bias = state[block + "attn.qkv.bias"][rows].reshape(num_heads, head_width)
            arrays[f"{to}{attention}/{name}/bias"] = bias
        out = state[block + "attn.proj.weight"].T.reshape(num_heads, head_width, width)
        arrays[f"{to}{attention}/out/kernel"] = out
        arrays[f"{to}{attention}/out/bias"] = state[block + "attn.proj.bias"]
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", norm2)):
            arrays[f"{to}{theirs}/scale"] = state[f"{block}{ours}.weight"]
            arrays[f"{to}{theirs}/bias"] = state[f"{block}{ours}.bias"]
        for number in (1, 2):
            dense = f"{to}{mlp}/Dense_{number - 1}/"
            arrays[dense + "kernel"] = state[f"{block}mlp.fc{number}.weight"].T
            arrays[dense + "bias"] = state[f"{block}mlp.fc{number}.bias"]
    return {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in arrays.items()}


def stacked(arrays):
    """Returns the arrays of a model with scanned blocks: one array for all blocks, along a new first axis."""
    result, blocks = {}, {}
    for key, array in arrays.items():
        match = re.match(r"Transformer/encoderblock_(\d+)/(.*)", key)
        if match is None:
            result[key] = array
        else:
            blocks.setdefault(match.group(2), {})[int(match.group(1))] = array
    for name, parts in blocks.items():
        result["Transformer/encoderblock/" + name] = np.stack([parts[index] for index in sorted(parts)])
    return result


def mmpretrain_state(state, version, classes):
    """Returns the content of a .pth of mmpretrain 1.x, mmclassification 0.23 or up to 0.16, or of a backbone alone."""
    renamed = [("norm1", "ln1"), ("norm2", "ln2"), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1")]
    if version == "0.16":
        renamed += [("attn.qkv.", "attn.attn.in_proj_"), ("attn.proj.", "attn.attn.out_proj.")]
        renamed = [(a, b.replace("ffn.", "mlp.")) for a, b in renamed]
    tensors = {}
    for key, tensor in state.items():
        if key.startswith("head."):
            name = "head.layers." + key
        elif key.startswith("pre_logits."):
            name = "head.layers." + key.replace(".fc", "")
        else:
            name = (
                re.sub(r"^norm\.", "ln1.", key)
                .replace("blocks.", "layers.")
                .replace("patch_embed.proj", "patch_embed.projection")
            )
            for before, after in renamed:
                name = name.replace(before, after)
            name = "backbone." + name
        tensors[name] = tensor
    if version == "backbone":
        return {key[len("backbone.") :]: t for key, t in tensors.items() if key.startswith("backbone.")}
    meta = {"dataset_meta": {"classes": classes}} if version == "1.x" else {"CLASSES": classes, "epoch": 3}
    return {"meta": meta, "state_dict": tensors}

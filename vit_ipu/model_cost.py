"""Parameters and floating-point operations of a ViT in closed form. Nothing here imports torch."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence

from vit_ipu.config import ModelConfig
from vit_ipu.units import frozen_units
from vit_ipu.variants import VARIANTS

# Params (M) and Flops (G) as mmclassification 0.x's ViT page prints them, for every image size of the row.
PRINTED = {
    "vit_base_patch16": (86.86, 33.03),
    "vit_base_patch32": (88.30, 8.56),
    "vit_large_patch16": (304.72, 116.68),
}


PRINTED_FORMULA = (
    "printed Flops = n*3*P^2*D + n*D + 2*L*T*D*M + D*K + 2*(2L+1)*T*D at 384 px with K = 1000 classes, where P is the "
    "patch size, n = (384/P)^2, T = n + 1, D the width, L the depth and M = 4D: attention and its projections are "
    "left out; printed Params are those at 384 px with the head"
)
"""Formula of `printed_flops`."""


def num_parameters(model: ModelConfig) -> int:
    """Returns the number of trainable parameters, head included."""
    return sum(parameters_per_ipu(model, (model.depth,)))


def parameters_per_ipu(model: ModelConfig, layers_per_ipu: Sequence[int]) -> List[int]:
    """Returns the trainable parameters on each IPU: of its blocks, and of the embedding or of the head."""
    width, mlp = model.width, model.mlp_width
    embed = 3 * model.patch_size**2 * width + width + width + model.num_tokens * width
    norm = 2 * width
    attention = 3 * width * width + 3 * width + width * width + width
    block = 2 * norm + attention + width * mlp + mlp + mlp * width + width
    representation = model.representation_size or 0
    pre_logits = width * representation + representation
    head = (representation or width) * model.num_classes + model.num_classes
    parameters = [count * block for count in layers_per_ipu]
    parameters[0] += embed
    parameters[-1] += norm + pre_logits + head
    return parameters


class _Products(NamedTuple):
    """Multiply-accumulates of a unit in one image's forward pass."""

    unit: str
    with_weights: int
    of_attention: int


def forward_flops(model: ModelConfig, *, needed_only: bool = False) -> int:
    """Returns the multiply-accumulates of one image's forward pass in matrix products, attention included.

    A multiply-accumulate counts as one operation, as in the figures that papers and timm print as GFLOPs or GMACs.
    With `needed_only`, the last block counts for what the class token's output needs, as CPUs and GPUs compute it.
    """
    return sum(found.with_weights + found.of_attention for found in _products(model, needed_only=needed_only))


def training_flops(model: ModelConfig, freeze: Sequence[str] = (), *, needed_only: bool = False) -> int:
    """Returns the multiply-accumulates of one image's forward and backward pass, counted as in `forward_flops`.

    A backward pass has twice those of a forward pass: for the gradients of a product's two factors. `freeze` is that of
    `optim.freeze`: frozen weights have no gradient, and before the first trained unit there is no backward pass.
    """
    frozen = frozen_units(freeze, model.depth)
    total, flows_back = 0, False
    for unit, with_weights, of_attention in _products(model, needed_only=needed_only):
        is_trained = unit not in frozen
        # A block passes gradients on to its own first layer norm. Those of pixels are counted, as is usual.
        to_inputs = flows_back or (is_trained and unit.startswith(("blocks.", "embed")))
        total += with_weights * (1 + is_trained + to_inputs) + of_attention * (1 + 2 * to_inputs)
        flows_back = flows_back or is_trained
    return total


def _products(model: ModelConfig, *, needed_only: bool) -> List[_Products]:
    """Returns the matrix products of each unit, from the embedding to the head."""
    tokens, width = model.num_tokens, model.width
    queries = [tokens] * (model.depth - 1) + [1 if needed_only else tokens]
    products = [_Products("embed", model.num_patches * 3 * model.patch_size**2 * width, 0)]
    for block, count in enumerate(queries):
        with_weights = 2 * tokens * width * width + count * (2 * width * width + 2 * width * model.mlp_width)
        products.append(_Products(f"blocks.{block}", with_weights, count * 2 * tokens * width))
    features, head = model.representation_size or 0, (model.representation_size or width) * model.num_classes
    products.append(_Products("norm", 0, 0))
    if features:
        products.append(_Products("pre_logits", width * features, 0))
    return [*products, _Products("head", head, 0)]


def printed_flops(model: ModelConfig) -> int:
    """Returns the figure that mmclassification's ViT page prints as Flops, without attention and its projections.

    mmcv/cnn/utils/flops_counter.py matches exact module types, so it counts only the patch embedding with its bias, the
    MLPs, the layer norms with 2 operations per element, and the head.
    """
    patches, tokens, width = model.num_patches, model.num_tokens, model.width
    embed = patches * 3 * model.patch_size**2 * width + patches * width
    mlp = model.depth * 2 * tokens * width * model.mlp_width
    norms = 2 * (2 * model.depth + 1) * tokens * width
    return embed + mlp + width * model.num_classes + norms


def describe_variants(image_size: int, num_classes: int) -> List[Dict[str, Any]]:
    """Returns each variant's parameters and multiply-accumulates at a size, with the figures of mmclassification.

    mmclassification prints its figures for 384 px and 1000 classes; `printed_flops` reproduces its Flops.
    """
    rows = []
    for variant, shape in VARIANTS.items():
        nearest = max(image_size // shape["patch_size"], 1) * shape["patch_size"]
        model = ModelConfig(variant=variant, image_size=nearest, num_classes=num_classes)  # type: ignore[call-arg]
        row: Dict[str, Any] = {
            "variant": variant,
            "width": model.width,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "patch_size": model.patch_size,
            "image_size": nearest,
            "parameters": num_parameters(model),
            "flops": forward_flops(model),
        }
        if variant in PRINTED:
            at_384 = model.model_copy(update={"image_size": 384, "num_classes": 1000})
            row["mmclassification"] = {
                "printed_parameters_m": PRINTED[variant][0],
                "printed_flops_g": PRINTED[variant][1],
                "reproduced_parameters": num_parameters(at_384),
                "reproduced_flops": printed_flops(at_384),
                "formula": PRINTED_FORMULA,
            }
        rows.append(row)
    return rows

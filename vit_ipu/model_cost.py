"""Parameters and floating-point operations of a ViT in closed form. Nothing here imports torch."""

from __future__ import annotations

from vit_ipu.config import ModelConfig


def num_parameters(model: ModelConfig) -> int:
    """Trainable parameters, head included."""
    width, mlp = model.width, model.mlp_width
    embed = 3 * model.patch_size**2 * width + width + width + model.num_tokens * width
    norm = 2 * width
    attention = 3 * width * width + 3 * width + width * width + width
    block = 2 * norm + attention + width * mlp + mlp + mlp * width + width
    representation = model.representation_size or 0
    pre_logits = width * representation + representation
    head = (representation or width) * model.num_classes + model.num_classes
    return embed + model.depth * block + norm + pre_logits + head


def forward_flops(model: ModelConfig) -> int:
    """Multiply-accumulates of one image's forward pass in matrix products, attention included, counted once each.

    One multiply-accumulate is one, as in the figures that papers and timm print as GFLOPs or GMACs.
    """
    tokens, width = model.num_tokens, model.width
    embed = model.num_patches * 3 * model.patch_size**2 * width
    projections = 4 * tokens * width * width + 2 * tokens * width * model.mlp_width
    attention = 2 * tokens * tokens * width
    representation = width * (model.representation_size or 0)
    head = (model.representation_size or width) * model.num_classes
    return embed + model.depth * (projections + attention) + representation + head


def printed_flops(model: ModelConfig) -> int:
    """The figure that mmclassification's ViT page prints as Flops, which leaves attention and its projections out.

    mmcv/cnn/utils/flops_counter.py matches exact module types, and so counts the patch embedding with its bias,
    the MLPs, layer norms at 2 an element, and the head.
    """
    patches, tokens, width = model.num_patches, model.num_tokens, model.width
    embed = patches * 3 * model.patch_size**2 * width + patches * width
    mlp = model.depth * 2 * tokens * width * model.mlp_width
    norms = 2 * (2 * model.depth + 1) * tokens * width
    return embed + mlp + width * model.num_classes + norms

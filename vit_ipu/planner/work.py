"""Work of a transformer's layers on one micro-batch: matrix products, elementwise passes and operations.

m micro-batch, T tokens, D width, H heads, M width of the MLP, N patches, P patch side, K classes. A pass reads and
writes every element once. The numbers of passes follow from how poplibs computes a layer (lib/popnn/NonLinearity.cpp,
lib/popnn/LayerNorm via lib/popnn/GroupNorm.cpp): layer norm: mean, variance, normalise, scale and shift; softmax:
maximum, subtract, exponential, sum, divide; tanh GELU: three for its polynomial, one for tanh; dropout: draw, multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, List, NamedTuple, Tuple

from vit_ipu.config import ModelConfig
from vit_ipu.planner.products import Product

NORM, SOFTMAX, GELU, DROPOUT, BIAS, ADD, SPLIT_HEADS = 4, 5, 4, 2, 1, 1, 4
"""Passes forward; SPLIT_HEADS: copies of query, key, value and mixture between the layouts of (T, D) and of heads."""
NORM_BACKWARD, SOFTMAX_BACKWARD, GELU_BACKWARD, DROPOUT_BACKWARD = 8, 4, 6, 1


class Work(NamedTuple):
    """Work on one micro-batch; `elements` counts elements x passes."""

    products: Tuple[Product, ...] = ()
    elements: float = 0.0
    operations: int = 0

    def plus(self, *others: Work) -> Work:
        """Returns the sum of this work and others."""
        parts = (self, *others)
        products = tuple(product for part in parts for product in part.products)
        return Work(products, sum(part.elements for part in parts), sum(part.operations for part in parts))


class LayerWork(NamedTuple):
    """Work of a layer's forward and backward pass."""

    forward: Work
    backward: Work


@dataclass(frozen=True)
class Block:
    """Shape of a transformer block, of a ViT or of another encoder; the flags tell which layers have dropout."""

    tokens: int
    width: int
    num_heads: int
    mlp_width: int
    dropout: bool = False
    attention_dropout: bool = False
    mlp_dropout: bool = False

    @property
    def num_parameters(self) -> int:
        """Parameters: 4D(D+1) of the attention, 2DM+D+M of the MLP, 4D of the norms."""
        width, mlp = self.width, self.mlp_width
        return 4 * width * (width + 1) + 2 * width * mlp + width + mlp + 4 * width


def block_work(block: Block, micro_batch: int) -> LayerWork:
    """Returns the work of one block."""
    tokens, width, mlp = micro_batch * block.tokens, block.width, block.mlp_width
    heads = micro_batch * block.num_heads
    products = [
        Product(1, tokens, 3 * width, width),  # query, key and value
        Product(heads, block.tokens, block.tokens, width // block.num_heads),  # scores
        Product(heads, block.tokens, width // block.num_heads, block.tokens),  # mixture of values
        Product(1, tokens, width, width),
        Product(1, tokens, mlp, width),
        Product(1, tokens, width, mlp),
    ]
    stream, hidden, scores = tokens * width, tokens * mlp, heads * block.tokens**2
    drops = int(block.dropout) * 2 * stream + int(block.mlp_dropout) * hidden + int(block.attention_dropout) * scores
    num_drops = 2 * block.dropout + block.mlp_dropout + block.attention_dropout
    same = (5 * BIAS + SPLIT_HEADS + 2 * ADD) * stream + BIAS * hidden
    forward = 2 * NORM * stream + SOFTMAX * scores + GELU * hidden + DROPOUT * drops + same
    backward = (
        2 * NORM_BACKWARD * stream
        + SOFTMAX_BACKWARD * scores
        + GELU_BACKWARD * hidden
        + DROPOUT_BACKWARD * drops
        + same
    )
    return LayerWork(
        Work(tuple(products), forward, 16 + num_drops),
        Work(_gradients(products), backward + DROPOUT_BACKWARD * drops, 28 + num_drops),
    )


def model_block_work(model: ModelConfig, micro_batch: int) -> LayerWork:
    """Returns the work of one block of a ViT, whose MLP also has dropout between its layers."""
    drops, attention = model.dropout > 0, model.attention_dropout > 0
    block = Block(model.num_tokens, model.width, model.num_heads, model.mlp_width, drops, attention, drops)
    return block_work(block, micro_batch)


def embed_work(model: ModelConfig, micro_batch: int, *, mixes: bool) -> LayerWork:
    """Returns the work of normalising and mixing images, and of the embedding; images have no gradient."""
    pixels = micro_batch * 3 * model.image_size**2
    tokens = micro_batch * model.num_tokens * model.width
    product = Product(1, micro_batch * model.num_patches, model.width, 3 * model.patch_size**2)
    mixing = 5 if mixes else 0
    drops = DROPOUT * tokens if model.dropout > 0 else 0
    forward = Work((product,), (4 + mixing) * pixels + 3 * tokens + drops, 8 + mixing)
    return LayerWork(forward, Work((product.gradients()[1],), 3 * tokens + drops / 2, 5))


def head_work(model: ModelConfig, micro_batch: int) -> LayerWork:
    """Returns the work of the last layer norm, the representation layer, the classifier and the loss."""
    tokens = micro_batch * model.num_tokens * model.width
    inner = model.representation_size
    products = [Product(1, micro_batch, model.num_classes, inner or model.width)]
    if inner:
        products.append(Product(1, micro_batch, inner, model.width))
    classes = 12 * micro_batch * model.num_classes
    return LayerWork(
        Work(tuple(products), NORM * tokens + classes, 8),
        Work(_gradients(products), NORM_BACKWARD * tokens + classes, 14),
    )


def _gradients(products: Iterable[Product]) -> Tuple[Product, ...]:
    gradients: List[Product] = []
    for product in products:
        gradients += product.gradients()
    return tuple(gradients)

"""Cost of one matrix product on an IPU's tiles: the best split over the tiles, as poplibs' planner searches for it.

A product of `pairs` pairs of matrices, (rows, depth) x (depth, columns), is cut along all four; each tile computes one
piece. Columns and depth are cut in groups of 16, the width of the matrix unit in float16. A tile receives both operands
of its piece; if the depth is cut, partial sums are exchanged and added. Operands that do not fit into the memory that
`availableMemoryProportion` allows are computed in several passes, each of which receives the rows again. Sources:
poplibs lib/poplin/ConvPlan.cpp (cut and cost), lib/poplin/ConvModel.cpp, and
https://docs.graphcore.ai/projects/available-memory.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any, List, NamedTuple

import numpy as np

from vit_ipu.planner.hardware import Hardware

GROUP = 16
"""Columns and depth of the block that a tile's matrix unit holds, in float16."""
WORKERS = 6
"""Threads of a tile, which share the rows of a piece (Bow-2000 data sheet: 8,832 threads on 1,472 tiles)."""


class Product(NamedTuple):
    """`pairs` products of (rows, depth) x (depth, columns)."""

    pairs: int
    rows: int
    columns: int
    depth: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.pairs * self.rows * self.columns * self.depth

    def gradients(self) -> List[Product]:
        """Returns the products that give the gradients of the left and of the right operand."""
        pairs, rows, columns, depth = self
        return [Product(pairs, rows, depth, columns), Product(pairs, depth, columns, rows)]


class Formats(NamedTuple):
    """Bytes of an element and of a partial sum, and the share of a tile's memory for temporaries."""

    element_bytes: int
    partial_bytes: int
    proportion: float


class ProductCost(NamedTuple):
    """Cycles of the slowest tile, and the temporary bytes on all tiles together."""

    compute_cycles: float
    exchange_cycles: float
    temporary_bytes: float


@lru_cache(maxsize=None)
def product_cost(product: Product, formats: Formats, hardware: Hardware) -> ProductCost:
    """Returns the cost of the fastest split of a product."""
    size, partial = formats.element_bytes, formats.partial_bytes
    groups, columns, depths = _splits(product, hardware.tiles)
    used = groups * columns * depths
    rows = np.ceil(product.rows / np.clip(hardware.tiles // used, 1, product.rows))
    pairs = np.ceil(product.pairs / groups)
    blocks_across = np.ceil(ceil(product.columns / GROUP) / columns)
    blocks_deep = np.ceil(ceil(product.depth / GROUP) / depths)
    left, right = rows * blocks_deep * GROUP * size, blocks_across * blocks_deep * GROUP**2 * size
    sums = rows * blocks_across * GROUP * partial
    budget = formats.proportion * hardware.tile_bytes
    passes = np.clip(np.ceil((right + sums) / np.maximum(budget - left, 1)), 1, blocks_across)
    cycles_per_row = GROUP**2 / hardware.macs_per_cycle(size, partial)
    load = GROUP**2 * size / hardware.weight_load_bytes_per_cycle
    compute = pairs * blocks_across * blocks_deep * (load + cycles_per_row * WORKERS * np.ceil(rows / WORKERS))
    is_cut = depths > 1
    compute = compute + np.where(is_cut, pairs * sums / hardware.vector_bytes, 0)
    received = pairs * (passes * left + right + np.where(is_cut, sums, 0))
    exchange = received / hardware.exchange_bytes_per_cycle
    best = np.unravel_index(np.argmin(np.where(used <= hardware.tiles, compute + exchange, np.inf)), used.shape)
    temporary = (left + (right + sums) / passes)[best] * hardware.tiles
    return ProductCost(float(compute[best]), float(exchange[best]), float(temporary))


def _splits(product: Product, tiles: int) -> Any:
    """Returns a grid of the numbers of pieces along pairs, columns and depth."""
    lengths = (product.pairs, ceil(product.columns / GROUP), ceil(product.depth / GROUP))
    return np.meshgrid(*(_pieces(length, tiles) for length in lengths), indexing="ij")


def _pieces(length: int, most: int) -> np.ndarray:
    """Returns the useful numbers of pieces: the fewest for each size of the largest piece."""
    return np.unique([ceil(length / size) for size in range(1, length + 1) if ceil(length / size) <= most])

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
from typing import Any, List, NamedTuple

import numpy as np

from vit_ipu.planner.hardware import Hardware

GROUP = 16
"""Columns and depth of the block that a tile's matrix unit holds, in float16."""
WORKERS = 6
"""Threads of a tile, which share the rows of a piece (Bow-2000 data sheet: 8,832 threads on 1,472 tiles)."""

MOST_COUNTS = 150
"""Numbers of pieces that are tried along one direction; products of ViTs in use have fewer that are useful."""


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
    piece = _pieces_of(product, hardware.tiles)
    size, partial = formats.element_bytes, formats.partial_bytes
    left, right = piece.rows * piece.deep * GROUP * size, piece.across * piece.deep * GROUP**2 * size
    sums = piece.rows * piece.across * GROUP * partial
    room = np.maximum(formats.proportion * hardware.tile_bytes - left, 1)
    passes = np.clip(np.ceil((right + sums) / room), 1, piece.across)
    per_row = WORKERS * np.ceil(piece.rows / WORKERS) * GROUP**2 / hardware.macs_per_cycle(size, partial)
    load = GROUP**2 * size / hardware.weight_load_bytes_per_cycle
    reduced = np.where(piece.is_cut_in_depth, sums, 0)
    compute = piece.pairs * (piece.across * piece.deep * (load + per_row) + reduced / hardware.vector_bytes)
    exchange = piece.pairs * (passes * left + right + reduced) / hardware.exchange_bytes_per_cycle
    best = np.unravel_index(np.argmin(np.where(piece.exists, compute + exchange, np.inf)), compute.shape)
    temporary = (left + (right + sums) / passes)[best] * hardware.tiles
    return ProductCost(float(compute[best]), float(exchange[best]), float(temporary))


class _Pieces(NamedTuple):
    """For each split, the size of the largest piece: pairs, rows, and blocks across the columns and along the depth."""

    pairs: Any
    rows: Any
    across: Any
    deep: Any
    is_cut_in_depth: Any
    exists: Any
    """Whether there are enough tiles."""


def _pieces_of(product: Product, tiles: int) -> _Pieces:
    """Returns arrays over all useful splits along pairs, columns and depth; the other tiles split the rows."""
    across, deep = -(-product.columns // GROUP), -(-product.depth // GROUP)
    lengths = (product.pairs, across, deep)
    by_pairs, by_columns, by_depth = np.meshgrid(*(_counts(length, tiles) for length in lengths), indexing="ij")
    used = by_pairs * by_columns * by_depth
    return _Pieces(
        pairs=np.ceil(product.pairs / by_pairs),
        rows=np.ceil(product.rows / np.clip(tiles // used, 1, min(product.rows, tiles))),
        across=np.ceil(across / by_columns),
        deep=np.ceil(deep / by_depth),
        is_cut_in_depth=by_depth > 1,
        exists=used <= tiles,
    )


def _counts(length: int, tiles: int) -> np.ndarray:
    """Returns the useful numbers of pieces: the fewest for each size of the largest piece, and at most MOST_COUNTS."""
    counts = [count for count in range(1, min(length, tiles) + 1) if -(-length // -(-length // count)) == count]
    step = -(-len(counts) // MOST_COUNTS)
    return np.array(counts[::step])

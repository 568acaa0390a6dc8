"""Cost of a matrix product: small splits by hand, lower bounds, and the direction of each setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ipu.planner.hardware import BOW, GC200
from vit_ipu.planner.products import Formats, Product, product_cost

HALF = Formats(2, 2, 0.6)
ONE_TILE = replace(GC200, tiles=1)
sizes = st.integers(1, 400)
products = st.builds(Product, st.integers(1, 40), sizes, sizes, sizes)


def test_one_block_on_one_tile_by_hand():
    cost = product_cost(Product(1, 6, 16, 16), HALF, ONE_TILE)
    # 16 x 16 weights of 2 bytes are loaded at 8 bytes a cycle; each of 6 rows takes 256 / 64 cycles
    assert cost.compute_cycles == 16 * 16 * 2 / 8 + 6 * 4
    assert cost.exchange_cycles == (6 * 16 + 16 * 16) * 2 / 4
    assert cost.temporary_bytes == (6 * 16 + 16 * 16 + 6 * 16) * 2


def test_rows_are_spread_over_the_tiles_by_hand():
    cost = product_cost(Product(1, 12, 16, 16), HALF, replace(GC200, tiles=2))
    assert cost.compute_cycles == 64 + 6 * 4
    assert cost.exchange_cycles == (6 * 16 + 16 * 16) * 2 / 4
    assert cost.temporary_bytes == 2 * (6 * 16 + 16 * 16 + 6 * 16) * 2


def test_partial_sums_are_exchanged_if_the_depth_is_cut():
    # two tiles, one row: only the depth can be cut, and the 16 sums are received and added
    cost = product_cost(Product(1, 1, 16, 1600), HALF, replace(GC200, tiles=2))
    assert cost.compute_cycles == 50 * (64 + 24) + 16 * 2 / 8
    assert cost.exchange_cycles == (50 * 16 * 2 + 50 * 512 + 16 * 2) / 4


def test_operands_larger_than_the_memory_for_temporaries_take_several_passes():
    product = Product(1, 6, 160, 16)
    plenty = product_cost(product, HALF, ONE_TILE)
    # left 192 bytes stay; right 10 x 512 and sums 10 x 192 bytes: 7040 bytes in 3 passes of at most 3040 - 192 bytes
    little = product_cost(product, Formats(2, 2, 3040 / ONE_TILE.tile_bytes), ONE_TILE)
    assert little.compute_cycles == plenty.compute_cycles
    assert little.exchange_cycles == plenty.exchange_cycles + 2 * 192 / 4
    assert little.temporary_bytes == pytest.approx(192 + 7040 / 3)


def test_gradients_have_the_same_work():
    product = Product(3, 5, 7, 11)
    assert product.gradients() == [Product(3, 5, 11, 7), Product(3, 11, 7, 5)]
    assert {gradient.macs for gradient in product.gradients()} == {product.macs}


@given(products)
@settings(max_examples=60, deadline=None)
def test_no_product_is_faster_than_the_peak(product):
    cost = product_cost(product, HALF, BOW)
    assert cost.compute_cycles * BOW.tiles * BOW.half_macs_per_cycle >= product.macs
    assert cost.temporary_bytes <= max(0.6 * BOW.memory_bytes, cost.temporary_bytes)


@given(products, st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_more_rows_never_take_less_time(product, more):
    longer = product._replace(rows=product.rows + more)
    assert _cycles(longer) >= _cycles(product) * (1 - 1e-9)


@given(products)
@settings(max_examples=60, deadline=None)
def test_wider_numbers_and_less_memory_never_take_less_time(product):
    assert _cycles(product, Formats(2, 4, 0.6)) > _cycles(product)
    assert _cycles(product, Formats(4, 4, 0.6)) > _cycles(product, Formats(2, 4, 0.6))
    assert _cycles(product, Formats(2, 2, 0.01)) >= _cycles(product)


def _cycles(product: Product, formats: Formats = HALF) -> float:
    cost = product_cost(product, formats, BOW)
    return cost.compute_cycles + cost.exchange_cycles

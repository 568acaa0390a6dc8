"""Work of the layers: multiply-accumulates equal those of model_cost, and dropout and mixing add passes."""

from __future__ import annotations

import pytest
from helpers import tiny_config

from vit_ipu.config_file import load_config
from vit_ipu.model_cost import forward_flops, num_parameters
from vit_ipu.planner.program import unit_parameters
from vit_ipu.planner.work import Block, Work, block_work, embed_work, head_work, model_block_work


def macs(work: Work) -> int:
    return sum(product.macs for product in work.products)


@pytest.mark.parametrize(
    "name",
    [
        "mmcls_vit_base_patch16_finetune_224_ipu",
        "mmcls_vit_large_patch16_finetune_384",
        "mmcls_vit_base_patch32_pretrain_224",
    ],
)
def test_products_have_the_operations_of_model_cost(name):
    model = load_config(name).model
    parts = [embed_work(model, 1, mixes=False), *[model_block_work(model, 1)] * model.depth, head_work(model, 1)]
    assert sum(macs(part.forward) for part in parts) == forward_flops(model)
    # the backward pass has two products for each, but images have no gradient
    embed = macs(parts[0].forward)
    assert sum(macs(part.backward) for part in parts) == 2 * forward_flops(model) - embed


def test_work_grows_with_the_micro_batch():
    model = tiny_config().model
    one, four = block_work(Block(17, 32, 2, 128), 1), block_work(Block(17, 32, 2, 128), 4)
    assert macs(four.forward) == 4 * macs(one.forward)
    assert four.forward.elements == 4 * one.forward.elements
    assert four.forward.operations == one.forward.operations
    assert head_work(model, 2).forward.elements == 2 * head_work(model, 1).forward.elements


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "mlp_dropout"])
def test_dropout_adds_passes_and_operations_but_no_products(kind):
    plain, dropped = (block_work(Block(17, 32, 2, 128, **{kind: on}), 2) for on in (False, True))
    for without, with_dropout in zip(plain, dropped):
        assert with_dropout.products == without.products
        assert with_dropout.elements > without.elements
        assert with_dropout.operations > without.operations


def test_mixing_adds_passes_over_the_pixels():
    model = tiny_config().model
    plain, mixed = (embed_work(model, 2, mixes=mixes).forward.elements for mixes in (False, True))
    assert mixed - plain == 5 * 2 * 3 * 28 * 28


def test_parameters_of_units_and_of_a_block():
    model = load_config("mmcls_vit_base_patch16_finetune_224_ipu").model
    parameters = unit_parameters(model)
    assert parameters["embed"] + 12 * parameters["block"] + parameters["head"] == num_parameters(model)
    assert Block(197, 768, 12, 3072).num_parameters == parameters["block"] == 7_087_872

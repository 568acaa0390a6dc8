"""Time of an update: formulas by hand, and the direction of every setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ipu.config_file import load_config
from vit_ipu.planner.hardware import BOW, GC200
from vit_ipu.planner.products import Formats, product_cost
from vit_ipu.planner.time import HOST, LINKS, ring_seconds, seconds_of_work, step_seconds, update_time
from vit_ipu.planner.work import Product, Work

FINE_TUNE = "graphcore_vit_base_patch16_imagenet_pod16"


def time(*overrides, hardware=BOW, name=FINE_TUNE):
    return update_time(load_config(name, overrides), hardware)


def rate(*overrides, hardware=BOW, name=FINE_TUNE):
    config = load_config(name, overrides)
    return config.pipeline.global_batch_size / update_time(config, hardware).total


def test_an_update_is_its_cycles_the_reduction_and_the_step():
    found = time()
    assert found.num_cycles == 30 + 2 * 4 - 2
    assert found.cycle == max(ipu.total for ipu in found.ipus)
    assert found.total == pytest.approx(36 * found.cycle + found.reduction + found.optimizer)


def test_stages_that_take_turns_add_up():
    found = time("pipeline.execution=sharded", "pipeline.recompute=none", "pipeline.recompute_mid_layers=[]")
    assert found.num_cycles == 30
    assert found.cycle == pytest.approx(sum(ipu.total for ipu in found.ipus))


def test_seconds_of_work_by_hand():
    hardware = replace(GC200, fitted_share=0.5)
    formats = Formats(2, 2, 0.6)
    product = Product(1, 64, 64, 64)
    cost = product_cost(product, formats, hardware)
    found = seconds_of_work(Work((product,), elements=4 * 1472 * 10, operations=2), formats, hardware)
    assert found == pytest.approx(
        {
            "matrix products": cost.compute_cycles / 1.325e9 / 0.5,
            "exchange": cost.exchange_cycles / 1.325e9 / 0.5,
            "elementwise": 10 * 2 / 1.325e9 / 0.5,  # 10 vectors of 4 on each tile, 2 cycles each
            "starting operations": 2 * 3 * 800 / 1.325e9 / 0.5,
        }
    )


def test_the_ring_by_hand():
    assert ring_seconds(8e9, 1, 4, BOW) == 0
    assert ring_seconds(8e9, 4, 16, BOW) == pytest.approx(2 * 8e9 * 3 / 4 / 64e9)
    assert ring_seconds(8e9, 16, 64, BOW) == pytest.approx(2 * 8e9 * 15 / 16 / 6.25e9)


def test_state_in_streaming_memory_goes_both_ways():
    on_chip, streamed = (step_seconds(1e6, 4, size, BOW) for size in (0, 8))
    assert streamed - on_chip == pytest.approx(2 * 1e6 * 8 / 5.5e9)


def test_the_host_link_carries_the_images_of_the_first_ipu():
    first, *others = time("data.transfer=float32").ipus
    assert first.by_kind[HOST] == pytest.approx(17 * 3 * 224 * 224 * 2 / 5.5e9)
    assert all(ipu.by_kind[HOST] == 0 for ipu in others)
    assert time("pipeline.synthetic_data=true").ipus[0].by_kind[HOST] == 0


@pytest.mark.parametrize(
    ("layers", "replicas", "sharing"), [([12], 1, 1), ([12], 4, 4), ([6, 6], 4, 2), ([6, 6], 1, 1)]
)
def test_short_replicas_share_a_gateway(layers, replicas, sharing):
    overrides = [f"pipeline.layers_per_ipu={layers}", f"pipeline.replication_factor={replicas}"]
    found = time(*overrides, "pipeline.recompute=auto", "pipeline.recompute_mid_layers=[]").ipus[0].by_kind[HOST]
    assert found == pytest.approx(sharing * 17 * 3 * 224 * 224 / 5.5e9)


def test_overlapped_transfers_hide_behind_the_computation():
    sharded = ["pipeline.execution=sharded", "pipeline.recompute=none", "pipeline.recompute_mid_layers=[]"]
    overlapped = [*sharded, "pipeline.io_tiles=32", "pipeline.overlap_io=accumulation_loop"]
    assert time(*sharded).ipus[0].by_kind[HOST] > 0
    assert time(*overlapped).ipus[0].by_kind[HOST] == 0


def test_links_carry_activations_and_one_ipu_has_none():
    assert time().ipus[1].by_kind[LINKS] == pytest.approx(17 * 197 * 768 * 2 / 64e9)
    assert update_time(tiny_config(pipeline={"layers_per_ipu": [4]}), BOW).ipus[0].by_kind[LINKS] == 0


def test_recomputation_is_one_more_forward_pass_but_not_on_the_last_ipu():
    again = time("pipeline.recompute_mid_layers=[]")
    once = time("pipeline.recompute=none", "pipeline.recompute_mid_layers=[]")
    products = "matrix products"
    assert again.ipus[1].by_kind[products] / once.ipus[1].by_kind[products] == pytest.approx(4 / 3, rel=0.02)
    assert again.ipus[3] == once.ipus[3]


# ------------------------------------------------------------------------------------- every setting

FASTER = [
    ["pipeline.recompute=none", "pipeline.recompute_mid_layers=[]"],
    ["pipeline.global_batch_size=4080"],  # more accumulation, so a smaller share of ramp-up and ramp-down
    ["pipeline.replication_factor=8", "pipeline.global_batch_size=4080"],
    ["model.dropout=0.0"],
    ["pipeline.synthetic_data=true"],
]
SLOWER = [
    ["pipeline.micro_batch_size=15"],
    ["pipeline.micro_batch_size=1"],
    ["pipeline.layers_per_ipu=[4,3,3,2]"],
    ["pipeline.layers_per_ipu=[4,4,4,0]"],
    ["pipeline.layers_per_ipu=[6,6]"],
    ["pipeline.replication_factor=2"],
    ["pipeline.replicated_tensor_sharding=false"],
    ["pipeline.optimizer_state=off_chip"],
    ["data.transfer=float32"],
    ["data.mixup_alpha=0.5"],
    ["model.attention_dropout=0.1"],
    ["precision.partials=float32"],
    ["precision.compute=float32", "precision.partials=float32"],
    ["precision.accumulation=float32"],
    ["optim.optimizer=lamb"],
    ["pipeline.available_memory_proportion=0.02"],
    ["model.image_size=384", "data.eval_resize=384"],
    ["pipeline.execution=sharded"],
]


@pytest.mark.parametrize("overrides", FASTER, ids=str)
def test_settings_that_make_it_faster(overrides):
    assert rate(*overrides) > rate()


@pytest.mark.parametrize("overrides", SLOWER, ids=str)
def test_settings_that_make_it_slower(overrides):
    assert rate(*overrides) < rate()


def test_sharding_divides_the_optimizer_step_over_the_replicas():
    sharded, complete = time(), time("pipeline.replicated_tensor_sharding=false")
    assert complete.optimizer == pytest.approx(4 * sharded.optimizer)


def test_a_bow_is_faster_than_a_gc200_by_less_than_its_clock():
    faster = rate(hardware=replace(BOW, fitted_share=GC200.fitted_share)) / rate(hardware=GC200)
    assert 1.2 < faster < BOW.clock_hertz / GC200.clock_hertz


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_more_accumulation_never_lowers_the_rate(size, factor):
    def images(accumulation):
        pipeline = {"micro_batch_size": size, "global_batch_size": size * accumulation}
        config = tiny_config(pipeline=pipeline)
        return config.pipeline.global_batch_size / update_time(config, BOW).total

    assert images(8 * (factor + 1)) > images(8 * factor)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "matrix products of IPU 0"),
        (
            ["pipeline.global_batch_size=476", "pipeline.layers_per_ipu=[3,3,3,3]"],
            "ramp-up and ramp-down of the pipeline",
        ),
        (["model.variant=vit_tiny_patch32", "data.transfer=float32"], "host link of IPU 0"),
    ],
)
def test_the_limit_is_named(overrides, expected):
    assert time(*overrides).limited_by == expected

"""Memory of each IPU: by hand, the direction of every setting, the verdicts, and the published configs."""

from __future__ import annotations

import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.planner.hardware import BOW, GC200, HARDWARE
from vit_ipu.planner.memory import KINDS, IpuMemory, fits_together, memory_per_ipu

FINE_TUNE = "graphcore_vit_base_patch16_imagenet_pod16"


def memory(name=FINE_TUNE, *overrides):
    return memory_per_ipu(load_config(name, overrides), GC200)


def kind(name, ipus):
    return [ipu.by_kind[name] for ipu in ipus]


def test_a_fine_tune_of_b16_by_hand():
    ipus = memory()
    parameters = [22_006_272, 21_263_616, 21_263_616, 22_034_152]
    assert kind("parameters", ipus) == [2 * count for count in parameters]
    assert kind("gradients", ipus) == [2 * count for count in parameters]
    assert kind("optimizer_state", ipus) == [2 * count // 4 for count in parameters]  # sharded over 4 replicas
    stream, images = 17 * 197 * 768 * 2, 17 * 3 * 224 * 224
    assert kind("stash", ipus) == [7 * (images + 4 * stream), 5 * 5 * stream, 3 * 5 * stream, 0]
    assert kind("buffers", ipus) == [images + stream, 2 * stream, 2 * stream, stream]


def test_activations_without_recomputation_by_hand():
    overrides = ["model.dropout=0", "pipeline.layers_per_ipu=[4,4,4,0]", "pipeline.recompute_mid_layers=[]"]
    ipus = memory(FINE_TUNE, *overrides, "pipeline.recompute=none")
    stream, tokens = 17 * 197 * 768 * 2, 17 * 197
    scores, hidden, statistics = 17 * 12 * 197 * 197 * 2, 4 * stream, 2 * tokens * 4
    # kept by a block: input, norm, q, k, weights, v, mixture; middle, norm, hidden, active; two norms' statistics
    block = 8 * stream + scores + 2 * hidden + 2 * statistics
    assert ipus[1].by_kind["stash"] == 5 * 4 * block


@pytest.mark.parametrize("name", sorted(set(shipped_configs()) - {"own_folder_gpu"}))
@pytest.mark.parametrize("hardware", list(HARDWARE.values()), ids=list(HARDWARE))
def test_published_configs_fit(name, hardware):
    ipus = memory_per_ipu(load_config(name), hardware)
    assert fits_together(ipus) is True, [(ipu.by_kind, ipu.range, ipu.capacity) for ipu in ipus]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        # graphcore/examples, vision/vit/pytorch/README.md: "micro_batch_size can be set to 14"
        (
            "graphcore_vit_base_patch16_pretrain_pod16",
            ["pipeline.micro_batch_size=14", "pipeline.global_batch_size=7168"],
        ),
        # an older README of it: micro-batch 12, accumulation 1365
        (
            "graphcore_vit_base_patch16_pretrain_lamb_pod16",
            ["pipeline.micro_batch_size=12", "pipeline.global_batch_size=65520"],
        ),
    ],
)
def test_the_largest_published_micro_batches_of_pre_training_fit(name, overrides):
    ipus = memory(name, *overrides)
    assert fits_together(ipus) is True


def test_b16_without_recomputation_does_not_fit():
    ipus = memory(FINE_TUNE, "pipeline.recompute=none", "pipeline.recompute_mid_layers=[]")
    assert ipus[0].by_kind["stash"] == pytest.approx(2.8e9, rel=0.01)
    assert [ipu.fits for ipu in ipus[:3]] == [False] * 3
    assert fits_together(ipus) is False


def test_a_verdict_within_the_uncertainty_is_not_known():
    ipus = memory("mmcls_vit_base_patch16_finetune_224_ipu", "pipeline.recompute=auto")
    assert ipus[0].range[0] < ipus[0].capacity < ipus[0].range[1]
    assert ipus[0].fits is None
    assert fits_together(ipus) is None


@given(st.fixed_dictionaries({name: st.integers(0, 10**9) for name in KINDS}))
@settings(deadline=None)
def test_the_verdict_follows_from_the_range(by_kind):
    ipu = IpuMemory(by_kind, 10**9)
    low, high = ipu.range
    assert low <= ipu.total or by_kind["code"] == 0
    assert low <= high
    assert ipu.fits == (True if high <= 10**9 else False if low > 10**9 else None)


def test_one_ipu_that_does_not_fit_decides():
    full, free = IpuMemory({"parameters": 1001}, 1000), IpuMemory({"parameters": 1000}, 1000)
    unknown = IpuMemory({"code": 1000}, 1000)
    assert fits_together([free, unknown, full]) is False
    assert fits_together([free, unknown]) is None
    assert fits_together([free, free]) is True


# ------------------------------------------------------------------------------------- every setting


SETTINGS = [
    ("stash", ["pipeline.micro_batch_size=15"], -1),
    ("stash", ["pipeline.recompute=auto", "pipeline.recompute_mid_layers=[]"], -1),
    ("activations", ["pipeline.recompute=auto", "pipeline.recompute_mid_layers=[]"], +1),
    ("stash", ["pipeline.recompute_mid_layers=[]"], -1),
    ("stash", ["pipeline.layers_per_ipu=[4,4,4,0]"], +1),
    ("parameters", ["pipeline.layers_per_ipu=[4,4,4,0]"], +1),
    ("optimizer_state", ["pipeline.replicated_tensor_sharding=false"], +1),
    ("optimizer_state", ["pipeline.replication_factor=2"], +1),
    ("optimizer_state", ["pipeline.optimizer_state=off_chip"], -1),
    ("optimizer_state", ["optim.optimizer=adamw"], +1),
    ("optimizer_state", ["optim.momentum=0.0"], -1),
    ("optimizer_state", ["precision.first_moment=float32"], +1),
    ("gradients", ["precision.accumulation=float32"], +1),
    ("gradients", ["optim.use_combined_accum=true"], -1),
    ("parameters", ["precision.compute=float32"], +1),
    ("stash", ["precision.compute=float32"], +1),
    ("temporaries", ["pipeline.available_memory_proportion=0.1"], -1),
    ("buffers", ["data.transfer=float32"], +1),
    ("activations", ["model.dropout=0.0"], -1),
    ("activations", ["model.attention_dropout=0.1"], +1),
]


@pytest.mark.parametrize(("name", "overrides", "direction"), SETTINGS, ids=[f"{k} {o[0]}" for k, o, _ in SETTINGS])
def test_each_setting_moves_memory_in_its_direction(name, overrides, direction):
    before, after = kind(name, memory())[0], kind(name, memory(FINE_TUNE, *overrides))[0]
    assert (after > before) if direction > 0 else (after < before)


def test_io_tiles_are_taken_from_the_memory():
    without, reserved = memory()[0], memory(FINE_TUNE, "pipeline.io_tiles=32")[0]
    assert without.capacity - reserved.capacity == 32 * GC200.tile_bytes


def test_both_kinds_of_ipu_have_the_same_memory():
    assert memory_per_ipu(tiny_config(), GC200) == memory_per_ipu(tiny_config(), BOW)


@given(st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_memory_grows_with_micro_batch_and_blocks(size, blocks):
    def total(micro_batch, count):
        layers = [count, 4 - count]
        pipeline = {"micro_batch_size": micro_batch, "layers_per_ipu": layers, "global_batch_size": 9 * 8 * 7 * 5}
        first = memory_per_ipu(tiny_config(pipeline=pipeline), GC200)[0].by_kind
        return sum(first[name] for name in ("parameters", "gradients", "optimizer_state", "stash", "activations"))

    assert total(size + 1, blocks) > total(size, blocks)
    assert total(size, blocks + 1) > total(size, blocks)

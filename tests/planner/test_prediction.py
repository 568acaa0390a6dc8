"""A config's prediction: throughput, time to finish, JSON, and advice if it does not fit."""

from __future__ import annotations

import json
import time

import pytest
from helpers import tiny_config

from vit_ipu.config_file import load_config
from vit_ipu.planner.hardware import BOW, GC200
from vit_ipu.planner.memory import KINDS, fits_together, memory_per_ipu
from vit_ipu.planner.prediction import predict

FINE_TUNE = "graphcore_vit_base_patch16_imagenet_pod16"
TOO_LARGE = ["pipeline.recompute=none", "pipeline.recompute_mid_layers=[]"]


def test_throughput_is_the_global_batch_over_the_update():
    found = predict(load_config(FINE_TUNE), BOW)
    assert found.images_per_second == pytest.approx(2040 / found.time.total)
    low, high = found.interval
    assert low < found.images_per_second < high


def test_time_to_finish_counts_updates_or_images():
    found = predict(load_config(FINE_TUNE), BOW)
    assert found.seconds_to_finish == pytest.approx(5000 * found.time.total)
    epochs = load_config("mmcls_vit_base_patch16_pretrain_224")
    assert predict(epochs, BOW).seconds_to_finish is None
    counted = load_config("mmcls_vit_base_patch16_pretrain_224", ["data.num_train=1281167"])
    found = predict(counted, BOW)
    assert found.seconds_to_finish == pytest.approx(counted.total_updates(1281167) * found.time.total)


def test_json_has_the_contract():
    values = json.loads(json.dumps(predict(load_config(FINE_TUNE), GC200).as_json(), allow_nan=False))
    assert set(values["predicted"]) >= {"images_per_second", "low", "high", "seconds_per_update", "limited_by"}
    assert values["fits"] is True
    assert values["hardware"] == "gc200"
    assert values["advice"] == []
    assert [row["ipu"] for row in values["ipus"]] == [0, 1, 2, 3]
    for row in values["ipus"]:
        assert set(row["memory_bytes"]) == set(KINDS)
        assert row["seconds"] == pytest.approx(sum(row["seconds_by_kind"].values()))
        assert 0 < row["utilisation"] < 1
        assert row["memory_low"] < sum(row["memory_bytes"].values()) < row["memory_high"] <= row["memory_capacity"]


def test_advice_makes_it_fit():
    found = predict(load_config(FINE_TUNE, TOO_LARGE), GC200)
    assert found.fits is False
    advice = found.as_json()["advice"]
    assert "pipeline.recompute=every_block" in advice
    for setting in advice:
        changed = load_config(FINE_TUNE, [*TOO_LARGE, setting])
        assert fits_together(memory_per_ipu(changed, GC200)) is True, setting
    sizes = [int(setting.rpartition("=")[2]) for setting in advice if "micro_batch_size" in setting]
    assert len(sizes) == 1  # the largest that fits
    larger = [size for size in (5, 6, 10, 15) if size > sizes[0]]
    for size in larger:
        changed = load_config(FINE_TUNE, [*TOO_LARGE, f"pipeline.micro_batch_size={size}"])
        assert fits_together(memory_per_ipu(changed, GC200)) is not True


@pytest.mark.parametrize(
    "change",
    [
        {"pipeline": {"micro_batch_size": 1 << 29, "global_batch_size": 1 << 30}},
        {"model": {"width": 1 << 24}},
        {"model": {"image_size": 7 * (1 << 20), "patch_size": 7}},
        {"model": {"num_classes": 1 << 30}, "data": {"source": "imagefolder", "path": "images"}},
    ],
    ids=["micro-batch", "width", "tokens", "classes"],
)
def test_enormous_numbers_are_answered_at_once(change):
    start = time.perf_counter()
    found = predict(tiny_config(**change), GC200)
    values = json.dumps(found.as_json(), allow_nan=False)
    assert found.fits is False, values
    assert time.perf_counter() - start < 10


def test_a_model_that_no_single_setting_makes_fit_gets_the_search():
    config = tiny_config(
        model={"width": 8192, "num_heads": 64, "depth": 4},
        pipeline={"layers_per_ipu": [4], "recompute": "every_block", "micro_batch_size": 1, "global_batch_size": 8},
        precision={"compute": "float16", "accumulation": "float16"},
    )
    found = predict(config, GC200)
    assert found.fits is False
    assert found.as_json()["advice"] == [
        "no single setting makes it fit for sure: try --search, or more IPUs a replica"
    ]

"""The search: exact for all splits, never worse than what is published, quick, and only configs that can run."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from importlib import import_module

import pytest
from helpers import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ipu.config_file import dump_config, load_config
from vit_ipu.errors import ConfigError
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.pipeline import num_ipus
from vit_ipu.planner.calibration import images_per_second
from vit_ipu.planner.hardware import BOW, GC200
from vit_ipu.planner.memory import fits_together, memory_per_ipu
from vit_ipu.planner.search import best_split, search
from vit_ipu.planner.time import update_time

search_module = import_module("vit_ipu.planner.search")
FINE_TUNE = "mmcls_vit_base_patch16_finetune_224_ipu"
LARGE = "mmcls_vit_large_patch16_finetune_384"


def with_layers(config, layers):
    return config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"layers_per_ipu": tuple(layers)})})


def splits(depth, ipus):
    """All splits in which only the first and the last IPU may have 0 blocks."""
    for layers in itertools.product(range(depth + 1), repeat=ipus):
        if sum(layers) == depth and 0 not in layers[1:-1]:
            yield layers


def shortest_cycle(config, hardware, ipus):
    found = [with_layers(config, layers) for layers in splits(config.model.depth, ipus)]
    fitting = [one for one in found if fits_together(memory_per_ipu(one, hardware)) is True]
    return min((update_time(one, hardware).cycle for one in fitting), default=None)


@given(
    depth=st.integers(1, 6),
    ipus=st.integers(1, 4),
    tiles=st.sampled_from([1472, 200, 150, 130]),
    recompute=st.sampled_from(["none", "auto", "every_block"]),
)
@settings(max_examples=40, deadline=None)
def test_the_best_split_is_the_best_of_all(depth, ipus, tiles, recompute):
    config = tiny_config(
        model={"depth": depth, "width": 64},
        pipeline={"layers_per_ipu": None, "recompute": recompute, "micro_batch_size": 32, "global_batch_size": 32 * 8},
        precision={"compute": "float16"},
    )
    hardware = replace(BOW, tiles=tiles)
    layers, shortest = best_split(config, hardware, ipus), shortest_cycle(config, hardware, ipus)
    if shortest is None:
        assert layers is None
        return
    assert sum(layers) == depth
    assert update_time(with_layers(config, layers), hardware).cycle == pytest.approx(shortest)
    assert fits_together(memory_per_ipu(with_layers(config, layers), hardware)) is True


def test_b16_on_four_ipus_is_at_least_as_good_as_the_published_split():
    config = load_config(FINE_TUNE)
    layers = best_split(config, GC200, 4)
    assert update_time(with_layers(config, layers), GC200).cycle <= update_time(config, GC200).cycle
    (found,) = search(config, GC200, 16, most=1).candidates
    assert found.images_per_second >= images_per_second(config, GC200)


@pytest.mark.parametrize("hardware", [GC200, BOW], ids=["gc200", "bow"])
def test_l16_at_384_fits_a_pod16(hardware):
    found = search(load_config(LARGE), hardware, 16).candidates
    assert found
    for candidate in found:
        assert num_ipus(candidate.config) == 16
        assert fits_together(memory_per_ipu(candidate.config, hardware)) is True


@pytest.mark.parametrize("name", [FINE_TUNE, LARGE])
def test_all_splits_over_1_to_16_ipus_take_less_than_10_seconds(name):
    config = load_config(name)
    start = time.perf_counter()
    for ipus in range(1, 17 if config.model.depth > 12 else 15):
        best_split(config, GC200, ipus)
    assert time.perf_counter() - start < 10


def test_found_configs_keep_the_recipe_and_can_be_read_back(tmp_path):
    config = load_config(LARGE)
    found = search(config, GC200, 16).candidates
    rates = [candidate.images_per_second for candidate in found]
    assert rates == sorted(rates, reverse=True)
    for number, candidate in enumerate(found):
        path = tmp_path / f"{number}.yaml"
        path.write_text(dump_config(candidate.config))
        again = load_config(path)
        assert again.model_copy(update={"pipeline": config.pipeline}) == config
        assert again.pipeline.global_batch_size == config.pipeline.global_batch_size
        assert ipu_violations(again) == []
        assert images_per_second(again, GC200) == pytest.approx(candidate.images_per_second)


def test_mixing_needs_at_least_two_samples():
    config = tiny_config(data={"mixup_alpha": 0.2}, pipeline={"micro_batch_size": 2})
    assert all(
        candidate.config.pipeline.micro_batch_size > 1 for candidate in search(config, BOW, 4, most=99).candidates
    )


def test_a_config_that_poptorch_refuses_anyway_has_no_candidates():
    found = search(tiny_config(model={"gelu": "erf"}), BOW, 4)
    assert found.candidates == []
    assert found.nothing_because == (
        "PopTorch would refuse every config that is predicted to fit: model.gelu erf would be computed in its tanh "
        "form on IPUs: set model.gelu: tanh"
    )


def test_a_slower_config_is_found_if_poptorch_refuses_the_faster_one(monkeypatch):
    everything = search(tiny_config(), BOW, 4, most=99).candidates
    fastest = everything[0].config.pipeline
    refused = {"recompute": fastest.recompute, "optimizer_state": fastest.optimizer_state}

    def violations(config):
        values = config.pipeline.model_dump()
        return ["refused"] if all(values[key] == value for key, value in refused.items()) else []

    monkeypatch.setattr(search_module, "ipu_violations", violations)
    found = search(tiny_config(), BOW, 4, most=99)
    assert found.nothing_because is None
    assert len(found.candidates) == len(everything)
    assert all(violations(candidate.config) == [] for candidate in found.candidates)


def test_nothing_is_found_if_nothing_fits():
    found = search(tiny_config(), replace(BOW, tiles=32), 4)
    assert found.candidates == []
    assert found.nothing_because.startswith("nothing on this POD is predicted to fit for sure: use more IPUs")


def test_nothing_is_found_if_the_batch_is_too_small():
    config = tiny_config(pipeline={"global_batch_size": 4, "micro_batch_size": 4, "layers_per_ipu": [4]})
    found = search(config, BOW, 16)
    assert found.candidates == []
    assert found.nothing_because == (
        "pipeline.global_batch_size 4 cannot be divided over 16 IPUs into enough micro-batches for any pipeline: use a "
        "larger global batch, or fewer IPUs (--pod)"
    )


def test_wrong_requests_are_refused():
    with pytest.raises(ConfigError, match="--pod 5: there is no such POD: use one of 4, 16, 64, 256"):
        search(tiny_config(), BOW, 5)
    with pytest.raises(ConfigError, match="pipeline.execution sharded: --search splits pipelines: use pipelined"):
        search(tiny_config(pipeline={"execution": "sharded"}), BOW, 4)
    with pytest.raises(ConfigError, match="model.depth 65: --search splits at most 64 blocks: leave out --search"):
        search(tiny_config(model={"depth": 65}, pipeline={"layers_per_ipu": None}), BOW, 4)

"""Placement, batch arithmetic, the timetable and PopTorch's rules."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from vit_ipu.config import PrecisionConfig
from vit_ipu.errors import ConfigError
from vit_ipu.ipu_rules import ipu_violations, require_runnable
from vit_ipu.pipeline import (
    BatchPlan,
    first_module,
    num_cycles,
    num_stages,
    place_units,
    timetable,
    utilisation,
)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([2], [("embed", "blocks.0", "blocks.1", "head")]),
        ([1, 1], [("embed", "blocks.0"), ("blocks.1", "head")]),
        ([0, 2, 0], [("embed",), ("blocks.0", "blocks.1"), ("head",)]),
        ([0, 1], [("embed",), ("blocks.0", "head")]),
        ([1, 2, 1, 0], [("embed", "blocks.0"), ("blocks.1", "blocks.2"), ("blocks.3",), ("head",)]),
    ],
)
def test_placement(layers, expected):
    assert place_units(layers) == tuple(expected)


def test_units_begin_at_modules_of_the_model():
    assert [first_module(unit) for unit in ("embed", "blocks.3", "head")] == ["patch_embed", "blocks.3", "norm"]


def test_batch_plans_of_training_and_evaluation():
    config = tiny_config(
        pipeline={"global_batch_size": 64, "micro_batch_size": 4, "replication_factor": 2, "device_iterations": 2},
        run={"evaluation_micro_batch_size": 3},
    )
    training, evaluation = BatchPlan.of(config), BatchPlan.of_evaluation(config)
    assert (training.gradient_accumulation, training.global_batch_size, training.samples_per_step) == (8, 64, 128)
    assert (evaluation.device_iterations, evaluation.samples_per_step) == (28, 3 * 2 * 28)


@pytest.mark.parametrize("ipus", [1, 2, 4, 8, 16])
def test_inference_calls_are_just_long_enough_to_keep_the_ipus_busy(ipus):
    layers = [16 // ipus] * ipus
    config = tiny_config(model={"depth": 16}, pipeline={"layers_per_ipu": layers, "global_batch_size": 4 * 32})
    iterations = BatchPlan.of_evaluation(config).device_iterations
    cycles = iterations + ipus - 1
    assert iterations / cycles > 0.9
    assert ipus == 1 or (iterations - 1) / (cycles - 1) <= 0.9


def test_evaluation_may_be_placed_differently():
    config = tiny_config(
        pipeline={"replication_factor": 2, "global_batch_size": 64, "available_memory_proportion": 0.3},
        run={
            "evaluation_layers_per_ipu": [2, 2],
            "evaluation_replication_factor": 4,
            "evaluation_execution": "sharded",
            "evaluation_available_memory_proportion": 0.1,
        },
    )
    pipeline = config.for_evaluation().pipeline
    assert (pipeline.layers_per_ipu, pipeline.replication_factor, pipeline.execution) == ((2, 2), 4, "sharded")
    assert pipeline.available_memory_proportion == (0.1,)
    plan = BatchPlan.of_evaluation(config)
    assert (plan.replication_factor, plan.device_iterations, plan.samples_per_step) == (4, 1, 16)
    assert tiny_config().for_evaluation() == tiny_config()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"evaluation_layers_per_ipu": [2, 1]},
            r"run.evaluation_layers_per_ipu \[2, 1\] sums to 3 but model.depth is 4",
        ),
        ({"evaluation_layers_per_ipu": [2, 0, 2]}, "run: evaluation_layers_per_ipu .*IPU 1 would have nothing to do"),
    ],
)
def test_a_wrong_placement_of_evaluation_is_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(run=run)


def test_share_of_an_instance_is_its_replicas():
    plan = BatchPlan(micro_batch_size=2, gradient_accumulation=2, replication_factor=2, device_iterations=1)
    # one host step: [G][R][m] = 0 1 | 2 3 of accumulation 0, 4 5 | 6 7 of accumulation 1
    assert plan.share(0, 2).tolist() == [0, 1, 4, 5]
    assert plan.share(1, 2).tolist() == [2, 3, 6, 7]


@given(*[st.integers(1, 4)] * 4, st.integers(1, 4))
def test_shares_partition_a_host_step(micro, accumulation, local, iterations, instances):
    plan = BatchPlan(micro, accumulation, local * instances, iterations)
    shares = [plan.share(i, instances) for i in range(instances)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(plan.samples_per_step))
    assert len({len(share) for share in shares}) == 1


def test_replicas_that_instances_cannot_share_are_refused():
    plan = BatchPlan(1, 8, 4, 1)
    with pytest.raises(ConfigError, match=r"replication_factor 4.*3 instances"):
        plan.share(0, 3)


def test_timetable_of_two_ipus_by_hand():
    # forward of micro-batch i on IPU 0 in cycle i, on IPU 1 in i + 1 together with its backward, then IPU 0 in i + 2
    expected = {(i, 0, i, False) for i in range(3)} | {(i + 1, 1, i, False) for i in range(3)}
    expected |= {(i + 1, 1, i, True) for i in range(3)} | {(i + 2, 0, i, True) for i in range(3)}
    assert {(s.cycle, s.ipu, s.micro_batch, s.backward) for s in timetable(2, 3)} == expected


@given(st.integers(1, 6), st.integers(1, 20))
def test_timetable_runs_every_micro_batch_once_and_in_order(ipus, accumulation):
    slots = timetable(ipus, accumulation)
    when = {(s.ipu, s.micro_batch, s.backward): s.cycle for s in slots}
    assert len(slots) == len(when) == 2 * ipus * accumulation
    assert max(s.cycle for s in slots) + 1 == num_cycles(ipus, accumulation) == accumulation + 2 * ipus - 2
    for micro_batch in range(accumulation):
        path = [when[ipu, micro_batch, False] for ipu in range(ipus)]
        path += [when[ipu, micro_batch, True] for ipu in reversed(range(ipus))]
        assert path == sorted(path)
        assert path[ipus - 1] == path[ipus]  # the last IPU runs forward and backward in one cycle


@pytest.mark.parametrize(("ipus", "accumulation", "percent"), [(4, 7, 54), (4, 16, 73), (4, 32, 84), (4, 128, 96)])
def test_utilisation_bound(ipus, accumulation, percent):
    assert round(100 * utilisation(ipus, accumulation)) == percent
    assert num_stages(ipus) == 7


@pytest.mark.parametrize(
    ("compute", "kind", "expected"),
    [
        ("auto", "ipu", "float16"),
        ("auto", "ipu-sim", "float16"),
        ("auto", "cuda", "bfloat16"),
        ("auto", "cpu", "float32"),
    ],
)
def test_automatic_number_format(compute, kind, expected):
    assert PrecisionConfig(compute=compute).resolve_compute(kind) == expected
    assert PrecisionConfig(compute="float64").resolve_compute(kind) == "float64"


# Settings that PopTorch would refuse or silently change, each with the texts that the message must contain.
RULES = [
    ({"pipeline": {"global_batch_size": 24}}, ["accumulation is 6", "7 stages", "global_batch_size to 28"]),
    ({"pipeline": {"layers_per_ipu": [1, 1, 2]}}, ["3 IPUs", "= 3 IPUs", "power of two", "2 or 4"]),
    (
        {"pipeline": {"replication_factor": 32, "global_batch_size": 4 * 32 * 7}},
        ["128 IPUs in one process", "at most 64", "2 instances"],
    ),
    ({"pipeline": {"io_tiles": 64}}, ["io_tiles 64", "only takes tiles away", "overlap_io", "io_tiles: null"]),
    (
        {"pipeline": {"overlap_io": "accumulation_loop", "io_tiles": 64}},
        ["overlap_io accumulation_loop", "execution: sharded"],
    ),
    (
        {"pipeline": {"overlap_io": "device_iteration_loop", "execution": "sharded"}},
        ["overlap_io device_iteration_loop", "io_tiles", "32"],
    ),
    (
        {
            "model": {"width": 2048, "num_heads": 16},
            "pipeline": {"io_tiles": 32, "replicated_tensor_sharding": True},
            "optim": {"optimizer": "adamw"},
        },
        ["io_tiles 32 hold 20.4 MB", "shard", "(1 replica in a process): set io_tiles: null"],
    ),
    (
        {
            "model": {"width": 512, "num_heads": 8},
            "pipeline": {"io_tiles": 32, "replicated_tensor_sharding": True},
            "optim": {"optimizer": "adamw"},
        },
        ["io_tiles 32 hold 20.4 MB", "takes 25.9 MB", "use 42 tiles, or io_tiles: null"],
    ),
    (
        {
            "pipeline": {"available_memory_proportion": [0.1, 0.2, 0.3, 0.4]},
            "run": {"evaluation_layers_per_ipu": [2, 2]},
        },
        ["has 4 numbers for 2 IPUs of evaluation", "set run.evaluation_available_memory_proportion"],
    ),
    ({"run": {"evaluation_replication_factor": 32}}, ["128 IPUs", "lower run.evaluation_replication_factor"]),
    ({"pipeline": {"io_tiles": 33}}, ["io_tiles 33", "even", "32 to 192"]),
    ({"pipeline": {"io_tiles": 200}}, ["io_tiles 200", "192"]),
    ({"pipeline": {"available_memory_proportion": [0.1, 0.2]}}, ["2 numbers", "4 IPUs"]),
    ({"pipeline": {"available_memory_proportion": 1.5}}, ["1.5", "(0, 1]"]),
    ({"run": {"evaluation_device_iterations": 3}}, ["evaluation_device_iterations 3", "4 stages", "use 4"]),
    ({"run": {"evaluation_layers_per_ipu": [1, 1, 2]}}, ["= 3 IPUs", "change run.evaluation_layers_per_ipu"]),
    (
        {"run": {"evaluation_available_memory_proportion": [0.1, 0.2]}},
        ["run.evaluation_available_memory_proportion has 2 numbers", "4 IPUs"],
    ),
    (
        {"precision": {"second_moment": "float16"}, "optim": {"optimizer": "adamw", "eps": 5e-8}},
        ["optim.eps 5e-08 is below 6.0e-08", "NaN", "use 1e-6"],
    ),
    (
        {"precision": {"second_moment": "float16"}, "optim": {"optimizer": "lamb"}},
        ["optim.eps 1e-08", "second_moment"],
    ),
    ({"precision": {"compute": "bfloat16"}}, ["bfloat16", "float16, float32"]),
    ({"precision": {"compute": "float64"}}, ["float64", "float16, float32"]),
    ({"precision": {"automatic_loss_scale": True}}, ["automatic_loss_scale", "precision.compute float16", "float32"]),
    (
        {"precision": {"automatic_loss_scale": True, "compute": "auto"}},
        ["automatic_loss_scale needs precision.accumulation float16", "it is float32"],
    ),
    (
        {
            "precision": {"automatic_loss_scale": True, "compute": "auto", "accumulation": "float16"},
            "optim": {"gradient_reduction": "sum"},
        },
        ["automatic_loss_scale needs optim.gradient_reduction mean", "it is sum"],
    ),
    ({"model": {"gelu": "erf"}}, ["model.gelu erf", "model.gelu: tanh"]),
    ({"model": {"layer_norm_eps": 1e-7}}, ["layer_norm_eps 1e-07", "1e-06"]),
    ({"model": {"attention": "fused"}}, ["model.attention fused", "auto"]),
    ({"optim": {"max_grad_norm": 1.0}}, ["max_grad_norm 1.0", "sgd", "velocity", "adamw"]),
    ({"optim": {"max_grad_norm": 1.0, "optimizer": "adam"}}, ["adam", "L2"]),
    ({"optim": {"max_grad_norm": 1.0, "optimizer": "lamb"}}, ["lamb", "no clipping"]),
    (
        {
            "optim": {"max_grad_norm": 1.0, "optimizer": "adamw"},
            "pipeline": {"popart_options": {"accumulateOuterFragmentSettings.schedule": 1}},
        },
        ["max_grad_norm 1.0", "schedule 1 (Serial)", "remove"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), RULES, ids=[str(change) for change, _ in RULES])
def test_rule_is_an_error_on_ipus_and_a_note_elsewhere(change, expected):
    config = tiny_config(**change)
    with pytest.raises(ConfigError) as caught:
        require_runnable(config, "ipu")
    notes = require_runnable(config, "cpu")
    assert len(notes) == 1
    for text in expected:
        assert text in str(caught.value)
        assert text in notes[0]


def test_the_error_of_a_config_that_breaks_two_rules_has_both():
    config = tiny_config(model={"gelu": "erf", "layer_norm_eps": 1e-9})
    with pytest.raises(ConfigError, match=r"^model\.gelu erf .*; also model\.layer_norm_eps 1e-09 .*"):
        require_runnable(config, "ipu-sim")


def test_the_simulator_computes_in_float64_but_hardware_does_not():
    config = tiny_config(precision={"compute": "float64"})
    assert ipu_violations(config, "ipu-sim") == []
    assert len(ipu_violations(config, "ipu")) == 1


@pytest.mark.parametrize(
    "section",
    [
        {"pipeline": {"synthetic_data": True}},
        {"precision": {"compute": "float16", "accumulation": "float16", "automatic_loss_scale": True}},
        {"precision": {"second_moment": "float16"}, "optim": {"optimizer": "adamw", "eps": 6e-8}},
        {"precision": {"second_moment": "float16"}, "optim": {"optimizer": "sgd"}},
        {
            "precision": {"compute": "float16", "automatic_loss_scale": True},
            "optim": {"use_combined_accum": True},
        },
        {"pipeline": {"io_tiles": 32, "optimizer_state": "off_chip"}},
        {"pipeline": {"io_tiles": 32, "replicated_tensor_sharding": True}},
        {"pipeline": {"io_tiles": 32, "execution": "sharded", "overlap_io": "accumulation_loop"}},
    ],
)
def test_options_that_ipus_and_the_simulator_have_are_accepted(section):
    assert require_runnable(tiny_config(**section), "ipu-sim") == []
    assert require_runnable(tiny_config(**section), "ipu") == []


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"evaluation_replication_factor": 4}, "evaluation_replication_factor makes 4 replicas, .* the 2 replicas of"),
        ({"evaluation_layers_per_ipu": [2, 2]}, "evaluation_layers_per_ipu makes 2 IPUs a replica, .* the 4 IPUs a re"),
    ],
)
def test_evaluation_has_the_layout_of_training_under_poprun(run, message):
    config = tiny_config(run=run, pipeline={"replication_factor": 2, "global_batch_size": 56})
    assert require_runnable(config, "ipu") == []
    with pytest.raises(ConfigError, match=message):
        require_runnable(config, "ipu", num_instances=2)


@pytest.mark.parametrize("pipeline", [{"layers_per_ipu": [1, 1, 2]}, {"replication_factor": 32}])
def test_evaluation_alone_does_not_need_a_possible_placement_of_training(pipeline):
    replicas = pipeline.get("replication_factor", 1)
    config = tiny_config(
        pipeline={"global_batch_size": 28 * replicas, **pipeline},
        run={"evaluation_layers_per_ipu": [4], "evaluation_replication_factor": 1},
    )
    assert ipu_violations(config, training=False) == []
    assert len(ipu_violations(config)) == 1


def test_replicas_of_one_process_share_the_optimizer_state_on_io_tiles():
    config = tiny_config(
        model={"width": 512, "num_heads": 8},
        pipeline={"io_tiles": 32, "replicated_tensor_sharding": True, "replication_factor": 2, "global_batch_size": 56},
        optim={"optimizer": "adamw"},
    )
    assert ipu_violations(config) == []
    (violation,) = ipu_violations(config, num_instances=2)
    assert "takes 25.9 MB on one IPU (1 replica in a process)" in violation


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="float16 is for IPUs; on cpu use auto, which is float32"):
        require_runnable(tiny_config(precision={"compute": "float16"}), "cpu")


def test_sharded_execution_needs_no_minimum_of_micro_batches():
    assert ipu_violations(tiny_config(pipeline={"global_batch_size": 4, "execution": "sharded"})) == []


def test_adamw_may_clip_on_ipus():
    assert ipu_violations(tiny_config(optim={"optimizer": "adamw", "max_grad_norm": 1.0})) == []


def test_replicas_may_spread_over_the_instances_of_poprun():
    config = tiny_config(pipeline={"replication_factor": 32, "global_batch_size": 4 * 32 * 7})
    assert require_runnable(config, "ipu", num_instances=8) == []

"""The simulator's cost account of a program: memory, FLOPs and traffic of each IPU, and the pipeline's timetable."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from simulated import TwoStages, data, options
from torch import nn

from vit_ipu import simulator as poptorch
from vit_ipu.simulator.cost.account import simulation_report
from vit_ipu.simulator.cost.liveness import Life, working_memory
from vit_ipu.simulator.cost.schedule import Schedule
from vit_ipu.simulator.tracing.arguments import Arguments
from vit_ipu.simulator.tracing.trace_model import trace_model
from vit_ipu.simulator.weights import Weights

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


def traced(model, args, used, training=True):
    arguments = Arguments([str(index) for index, _ in enumerate(args)], list(args), {})
    return trace_model(model, Weights.of(model), arguments, used._execution_strategy.stage_manager, training)


def report(model, args, used=None, training=True, **kwargs):
    used = used or options(1, 8, 1)
    return simulation_report(traced(model, args, used, training), used, **kwargs)


# ------------------------------------------------------------------------------------ by hand, two IPUs


@pytest.fixture
def two_stages():
    """Report for micro-batches of 2. IPU 0: (2, 6) x (6, 5), tanh. IPU 1: (2, 5) x (5, 3), loss."""
    state = {"Accl1___first.weight": torch.zeros(5, 6), "Accl2___second.bias": torch.zeros(3, dtype=torch.float16)}
    return report(TwoStages(), data(2), options(2, 3, 1), optimizer_state=dict(state, lossScaling=torch.ones(())))


def test_weights_by_hand(two_stages):
    first, second = two_stages.ipus
    assert (first.num_parameters, first.parameter_bytes) == (5 * 6 + 5, 4 * (5 * 6 + 5))
    assert (second.num_parameters, second.parameter_bytes) == (3 * 5 + 3, 4 * (3 * 5 + 3))
    assert (first.optimizer_state_bytes, second.optimizer_state_bytes) == (5 * 6 * 4, 3 * 2)


def test_flops_by_hand(two_stages):
    first, second = two_stages.ipus
    # the input requires no gradient: the first layer has one product backward, the second has two
    assert (first.flops_forward, first.flops_recompute, first.flops_backward) == (2 * 2 * 6 * 5,) * 3
    assert (second.flops_forward, second.flops_recompute, second.flops_backward) == (
        2 * 2 * 5 * 3,
        0,
        2 * 2 * 2 * 5 * 3,
    )


def test_traffic_by_hand(two_stages):
    first, second = two_stages.ipus
    hidden = 2 * 5 * 4
    assert (first.bytes_sent_forward, first.bytes_sent_backward) == (hidden, 0)
    assert (second.bytes_sent_forward, second.bytes_sent_backward) == (0, hidden)


def test_stash_by_hand(two_stages):
    first, second = two_stages.stages
    x, hidden = 2 * 6 * 4, 2 * 5 * 4
    assert (first.stashed_micro_batches, first.tensors_stashed, first.stash_bytes) == (3, 1, 3 * x)
    assert first.stash_bytes_without_recomputation == 3 * (x + hidden)  # the product's input and tanh's output
    assert (second.stashed_micro_batches, second.tensors_stashed, second.stash_bytes) == (0, 0, 0)


def test_peak_by_hand(two_stages):
    first, _ = two_stages.stages
    x, hidden = 2 * 6 * 4, 2 * 5 * 4
    # live in tanh's backward pass: x, tanh's output, and the gradients of tanh's output and input
    assert first.peak_activation_bytes == 2 * x + (x + hidden + 2 * hidden)
    assert first.peak_activation_bytes_without_recomputation == 2 * (x + hidden) + (x + hidden + 2 * hidden)


def test_cycles_by_hand(two_stages):
    assert (two_stages.num_forward_stages, two_stages.num_stages) == (2, 3)
    assert (two_stages.cycles_per_run, two_stages.cycles_per_call) == (3 + 2 * 2 - 2, 2 * 5)
    assert two_stages.utilisation == 3 / 5


# -------------------------------------------------------------------------------------- larger models


class Chain(nn.Module):
    """Linear layers, the i-th on `ipus[i]`; with `skip`, the last IPU also reads the first layer's output."""

    def __init__(self, ipus=(0, 1, 2, 3), skip=False, checkpoint=False):
        super().__init__()
        self.skip, self.checkpoint = skip, checkpoint
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in ipus])
        for index, (layer, ipu) in enumerate(zip(self.layers, ipus)):
            poptorch.BeginBlock(layer, str(index), ipu_id=ipu)

    def forward(self, x):
        first = x = self.layers[0](x)
        if self.checkpoint:
            x = poptorch.recomputationCheckpoint(torch.exp(x))
        for layer in list(self.layers)[1:]:
            x = layer(torch.tanh(x))
        return poptorch.identity_loss(x + first if self.skip else x, reduction="sum")


TENSOR = 2 * 8 * 4


def test_stash_counts_of_four_stages():
    stages = report(Chain(), [torch.ones(2, 8)]).stages
    assert [stage.stashed_micro_batches for stage in stages] == [7, 5, 3, 0]
    assert [stage.stash_bytes for stage in stages] == [7 * TENSOR, 5 * TENSOR, 3 * TENSOR, 0]


def test_a_tensor_that_skips_stages_passes_through_them():
    plain, skipping = (report(Chain(skip=skip), [torch.ones(2, 8)]).ipus for skip in (False, True))
    assert [ipu.bytes_sent_forward for ipu in plain] == [TENSOR, TENSOR, TENSOR, 0]
    assert [ipu.bytes_sent_forward for ipu in skipping] == [2 * TENSOR, 2 * TENSOR, 2 * TENSOR, 0]
    assert [ipu.bytes_sent_backward for ipu in skipping] == [0, 2 * TENSOR, 2 * TENSOR, 2 * TENSOR]


def test_a_checkpoint_is_stashed_too():
    first = report(Chain(checkpoint=True), [torch.ones(2, 8)]).stages[0]
    assert (first.tensors_stashed, first.stash_bytes) == (2, 7 * 2 * TENSOR)


def test_an_ipu_with_two_stages_has_their_sum():
    increment = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    account = report(Chain(ipus=(0, 1, 0, 1)), [torch.ones(2, 8)], options(1, 8, 1).setExecutionStrategy(increment))
    first, second = account.ipus
    assert (first.stages, second.stages) == ((0, 2), (1, 3))
    assert first.stash_bytes == (7 + 3) * TENSOR
    assert first.flops_forward == 2 * (2 * 2 * 8 * 8)


@pytest.mark.parametrize("strategy", [poptorch.ShardedExecution, poptorch.PipelinedExecution])
def test_only_a_pipeline_stashes_and_recomputes(strategy):
    account = report(Chain(), [torch.ones(2, 8)], options(1, 8, 1).setExecutionStrategy(strategy()))
    is_pipeline = strategy is poptorch.PipelinedExecution
    assert account.pipelined == account.recomputation == is_pipeline
    assert account.cycles_per_run == (8 + 6 if is_pipeline else 8 * 7)
    assert bool(sum(ipu.stash_bytes for ipu in account.ipus)) == is_pipeline


def test_one_ipu_is_not_a_pipeline_even_if_it_is_not_the_first():
    account = report(Chain(ipus=(1, 1, 1, 1)), [torch.ones(2, 8)], options(1, 8, 1))
    assert not account.pipelined
    assert not account.recomputation


def test_recomputation_can_be_switched_off():
    used = options(1, 8, 1)
    used._Popart.set("autoRecomputation", 0)
    account = report(Chain(), [torch.ones(2, 8)], used)
    assert not account.recomputation
    assert not any(slot.work == "recompute" for slot in account.timetable)


def test_inference_has_no_stash_and_no_backward_pass():
    account = report(Chain(), [torch.ones(2, 8)], poptorch.Options().deviceIterations(6), training=False)
    assert account.cycles_per_call == 6 + 4 - 1
    assert {slot.work for slot in account.timetable} == {"forward"}
    assert all(s.flops_backward == s.stash_bytes == s.bytes_sent_backward == 0 for s in account.stages)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2)
        self.middle = nn.Conv2d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = self.up(self.middle(self.down(x))).flatten(2).transpose(1, 2)
        return poptorch.identity_loss(self.attention(tokens, tokens, tokens)[0], reduction="sum")


def test_flops_equal_torchs_counter():
    counter = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.1 or later")
    model, x = Convolutions(), torch.ones(2, 3, 13, 13)
    with counter.FlopCounterMode(display=False) as forward:
        loss = model.to("meta")(x.to("meta"))
    with counter.FlopCounterMode(display=False) as backward:
        loss.backward()
    (ipu,) = report(Convolutions(), [x]).ipus
    assert ipu.flops_forward == forward.get_total_flops()
    assert ipu.flops_backward == backward.get_total_flops()


def test_flops_of_a_grouped_convolution_by_hand():
    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(8, 8, 3, groups=8)

        def forward(self, x):
            return poptorch.identity_loss(self.layer(x), reduction="sum")

    (ipu,) = report(Depthwise(), [torch.ones(2, 8, 6, 6)]).ipus
    # each of the (2, 8, 4, 4) outputs sums over 9; torch's counter ignores groups in the backward pass
    assert ipu.flops_forward == ipu.flops_backward == 2 * (2 * 8 * 4 * 4) * 9


def test_64_bit_integers_take_32_bits_on_an_ipu():
    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)
            poptorch.BeginBlock(self.head, "head", ipu_id=1)

        def forward(self, tokens, labels):
            return F.cross_entropy(self.head(self.embedding(tokens)), labels)

    tokens = torch.zeros(4, dtype=torch.int64)
    assert report(Embedding(), [tokens, tokens]).stages[0].stash_bytes == 3 * 4 * 4


# ------------------------------------------------------------------------------------------- liveness


def test_liveness_of_a_chain():
    # three operations a -> b -> c; autograd keeps a and b, of 100 and 10 bytes; c has 1
    lives = [
        Life(100, 0, 0, kept=True, has_gradient=False, saved_at={0: 0}),
        Life(10, 0, 1, kept=False, has_gradient=True, saved_at={0: 1}),
        Life(1, 1, 2, kept=False, has_gradient=True),
    ]
    assert working_memory(lives, [0, 0, 0], training=False).without_recomputation == 110
    # backward of the second operation: a and b are kept, and both gradients are live
    assert working_memory(lives, [0, 0, 0], training=True) == (100 + 10 + 10 + 1, 100 + 10 + 10 + 1)


def test_segments_are_recomputed_one_at_a_time():
    lives = [
        Life(100, 0, 0, kept=False, has_gradient=False, saved_at={0: 0}),
        Life(100, 1, 1, kept=False, has_gradient=False, saved_at={1: 1}),
    ]
    assert working_memory(lives, [0, 1], training=True) == (200, 100)


# ------------------------------------------------------------------------------------------- timetable


def test_timetable_of_two_stages_by_hand():
    slots = Schedule((0, 1), micro_batches=3, training=True, recomputes=True).slots()
    found = {(s.cycle, s.ipu, s.micro_batch, s.work) for s in slots}
    expected = {(i, 0, i, "forward") for i in range(3)} | {(i + 1, 1, i, "forward") for i in range(3)}
    expected |= {(i + 1, 1, i, "backward") for i in range(3)} | {(i + 2, 0, i, "backward") for i in range(3)}
    expected |= {(i + 2, 0, i, "recompute") for i in range(3)}
    assert found == expected
    assert [s.ramp for s in slots if s.ipu == 1 and s.work == "forward"] == ["ramp-up", "steady", "ramp-down"]


@pytest.mark.parametrize("forward", range(1, 6))
@pytest.mark.parametrize("accumulation", [9, 16])
def test_training_takes_g_plus_2f_minus_2_cycles(forward, accumulation):
    schedule = Schedule(tuple(range(forward)), micro_batches=accumulation, training=True)
    slots = schedule.slots()
    assert max(slot.cycle for slot in slots) + 1 == schedule.num_cycles == accumulation + 2 * forward - 2
    assert len(slots) == 2 * forward * accumulation
    steady = {slot.cycle for slot in slots if slot.ramp == "steady"}
    assert len(steady) == accumulation - (2 * forward - 2)
    busy = {(slot.cycle, slot.stage, slot.work) for slot in slots}
    assert all((c, s, w) in busy for c in steady for s in range(forward) for w in ("forward", "backward"))


@pytest.mark.parametrize(("forward", "iterations"), [(1, 1), (4, 4), (3, 10)])
def test_inference_takes_d_plus_f_minus_1_cycles(forward, iterations):
    schedule = Schedule(tuple(range(forward)), micro_batches=iterations, training=False)
    assert max(slot.cycle for slot in schedule.slots()) + 1 == schedule.num_cycles == iterations + forward - 1


# ---------------------------------------------------------------------------------------------- output


def test_the_report_is_plain_data_and_marked_as_simulated(two_stages):
    values = json.loads(two_stages.to_json())
    assert values["simulated"] is True
    assert values["unit_of_time"] == "cycles of the pipeline, not seconds"
    assert values["ipus"][0]["flops_forward"] == 120
    assert len(values["timetable"]) == 3 * 5


def test_the_chrome_trace_is_well_formed(two_stages, tmp_path):
    two_stages.write_chrome_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["simulated"] is True
    names = {
        (e["pid"], e["args"]["name"]) for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == "process_name"
    }
    assert names == {(0, "IPU 0 (simulated)"), (1, "IPU 1 (simulated)")}
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    lanes = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert len(events) == 2 * (3 * 5 + 2)  # device iterations x (slots + weight updates of two IPUs)
    for event in events:
        assert event["ts"] >= 0
        assert event["dur"] > 0
        assert (event["pid"], event["tid"]) in lanes
    assert {event["cat"].split(",")[0] for event in events} == {"forward", "recompute", "backward", "weight update"}
    assert {event["args"]["phase"] for event in events if "phase" in event["args"]} == {
        "ramp-up",
        "steady",
        "ramp-down",
    }


def test_an_ipu_does_one_thing_at_a_time_within_its_cycle(two_stages):
    events = [e for e in two_stages.chrome_trace()["traceEvents"] if e["ph"] == "X"]
    for ipu in (0, 1):
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["pid"] == ipu)
        assert all(end <= start + 0.01 for (_, end), (start, _) in zip(spans, spans[1:]))
    for event in events:
        if "cycle" in event["args"]:
            start = event["args"]["cycle"] * 1000 + 6000 * (event["ts"] >= 6000)
            assert start <= event["ts"] <= event["ts"] + event["dur"] <= start + 1000.01


def test_an_executor_returns_a_report():
    executor = poptorch.trainingModel(TwoStages(), options(1, 4, 1))
    executor(*data(8))
    account = executor.simulation_report()
    assert account.simulated
    assert [ipu.num_parameters for ipu in account.ipus] == [35, 18]

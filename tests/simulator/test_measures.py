"""Anchored tensors, counters, latencies, cycles and synthetic data of executors."""

from __future__ import annotations

import pytest
import torch
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch

pytestmark = pytest.mark.usefixtures("sixteen_ipus")

ALL, FINAL, SUM = poptorch.OutputMode.All, poptorch.OutputMode.Final, poptorch.OutputMode.Sum
EVERY_TWO = (poptorch.OutputMode.EveryN, 2)


def trained(opts, *, loss_scaling=1.0, batch=None):
    model = TwoStages()
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, loss_scaling=loss_scaling)
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor(*(batch or data(16)))
    return executor


# ----------------------------------------------------------------------------------------- anchors


def test_an_anchored_gradient_holds_the_gradient_of_each_micro_batch():
    opts = options(G=4, R=2, mode=ALL)
    opts.anchorTensor("gradient", "Gradient___second.bias")
    model = TwoStages()
    x, labels = data(16)
    expected = []
    for x_part, labels_part in zip(x.chunk(8), labels.chunk(8)):
        (gradient,) = torch.autograd.grad(model(x_part, labels_part)[1], model.second.bias)
        expected.append(gradient * 8)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, loss_scaling=8.0)
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor(x, labels)
    torch.testing.assert_close(executor.getAnchoredTensor("gradient"), torch.cat(expected))


@pytest.mark.parametrize("asked", [None, ALL, EVERY_TWO, FINAL], ids=["nothing", "All", "EveryN", "Final"])
@pytest.mark.parametrize(
    ("mode", "rows"), [(ALL, 8), (EVERY_TWO, 4), (FINAL, 2), (SUM, 2)], ids=["All", "EveryN", "Final", "Sum"]
)
def test_an_anchor_has_the_models_output_mode_whatever_it_asks(mode, rows, asked):
    opts = options(D=2, G=2, R=2, mode=mode, sharded=True)
    opts.anchorTensor("gradient", "Gradient___first.weight", *(asked if isinstance(asked, tuple) else (asked,)))
    assert trained(opts).getAnchoredTensor("gradient").shape == (5 * rows, 6)


def test_anchored_weights_and_optimizer_state():
    opts = options(D=2, G=4, R=1, mode=FINAL)
    opts.anchorTensor("weight", "UpdatedVar___second.bias")
    opts.anchorTensor("moment", "Accl1___second.bias")
    executor = trained(opts)
    assert torch.equal(executor.getAnchoredTensor("weight"), executor.model.second.bias.detach())
    state = executor._optimizer.state_dict()["ipu_state"]
    assert torch.equal(executor.getAnchoredTensor("moment"), state["Accl1___second.bias"])


def test_anchors_that_do_not_exist_are_refused():
    executor = poptorch.trainingModel(TwoStages(), options())
    with pytest.raises(AssertionError, match="No tensor with name gradient found"):
        executor.getAnchoredTensor("gradient")
    opts = options()
    opts.anchorTensor("gradient", "Gradient___third.bias")
    with pytest.raises(poptorch.Error, match="Anchored tensor Gradient___third.bias is not in the graph"):
        poptorch.trainingModel(TwoStages(), opts)(*data(8))


def test_tensor_names_can_be_read_after_compilation():
    executor = poptorch.trainingModel(TwoStages(), options())
    with pytest.raises(AssertionError, match="Model must be compiled before calling getTensorNames"):
        executor.getTensorNames()
    executor.compile(*data(8))
    names = executor.getTensorNames()
    assert {"input", "input/1", "loss", "first.weight", "Gradient___first.weight", "UpdatedVar___second.bias"} <= set(
        names
    )
    assert all(not name.startswith("Gradient") for name in _inference().getTensorNames())


def _inference():
    executor = poptorch.inferenceModel(TwoStages(), poptorch.Options().deviceIterations(2))
    executor.compile(*data(4))
    return executor


# ---------------------------------------------------------------------------------------- counters


@pytest.mark.parametrize(
    ("mode", "left"),
    [(ALL, 16), (EVERY_TWO, 8), (FINAL, 2), (SUM, 2)],
    ids=["All", "EveryN", "Final", "Sum"],
)
def test_counters_have_an_entry_for_every_transfer(mode, left):
    executor = trained(options(D=2, G=4, R=2, mode=mode, sharded=isinstance(mode, tuple)), batch=data(16))
    counters = executor.getPerfCounters()
    assert [len(entries) for entries in counters["input"]] == [16, 16]
    assert [len(entries) for entries in counters["output_complete"]] == [left, left]


def test_latency_is_the_depth_of_the_pipeline():
    executor = trained(options(D=2, G=4, mode=ALL))
    assert executor.getLatency() == executor.getComputeLatency() == (2.0, 2.0, 2.0)
    assert executor.getHostIpuLatency() == executor.getIpuHostLatency() == (0.0, 0.0, 0.0)
    entered = executor.getPerfCounters()["input"][0]
    assert entered == [0, 1, 2, 3, 6, 7, 8, 9]  # the second update waits for the first to drain: G + 2F - 2 cycles


def test_latency_to_the_last_output_counts_from_the_first_input():
    executor = trained(options(D=1, G=4, mode=FINAL))
    assert executor.getLatency() == (5.0, 5.0, 5.0)


def test_there_is_no_latency_before_the_first_call():
    executor = poptorch.trainingModel(TwoStages(), options())
    executor.compile(*data(8))
    assert executor.getLatency() == (0.0, 0.0, 0.0)
    assert executor.getPerfCounters() == {key: [[]] for key in ("input", "input_complete", "output", "output_complete")}


def test_cycles_are_counted_on_request():
    executor = trained(options(D=2, G=4))
    with pytest.raises(poptorch.Error, match="Cycle count logging is disabled"):
        executor.cycleCount()
    counted = poptorch.trainingModel(TwoStages(), options(D=2, G=4).logCycleCount(True))
    counted.compile(*data(16))
    with pytest.raises(poptorch.Error, match="Please run the model at least once before obtaining cycle count"):
        counted.cycleCount()
    counted(*data(16))
    assert counted.cycleCount() == 2 * (4 + 2 * 2 - 2)


def test_no_cycles_are_counted_on_the_ipu_model():
    opts = poptorch.Options().logCycleCount(True).useIpuModel(True)
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2), opts)
    with pytest.raises(poptorch.Error, match="Cycle count logging is only supported on actual IPU hardware"):
        executor(torch.ones(1, 2))


# ------------------------------------------------------------------------------ the machine, the data


def test_a_device_is_held_by_one_executor():
    opts = [poptorch.Options().deviceIterations(2).useIpuId(3) for _ in range(2)]
    first, second = (poptorch.inferenceModel(TwoStages(), each) for each in opts)
    first(*data(4))
    with pytest.raises(poptorch.Error, match="Failed to acquire device id 3"):
        second(*data(4))
    first.detachFromDevice()
    second(*data(4))


def test_synthetic_data_replaces_the_inputs():
    executor = poptorch.inferenceModel(torch.nn.Identity(), poptorch.Options().enableSyntheticData(True))
    given = torch.full((1, 1000), 7.0)
    out = executor(given)
    assert abs(out.mean()) < 0.2
    assert 0.8 < out.std() < 1.2
    assert torch.equal(executor(given), out)
    assert executor.getPerfCounters()["input"] == [[]]


def test_a_named_buffer_that_does_not_exist_is_refused():
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2), poptorch.Options().updatableNamedBuffers(["mean"]))
    with pytest.raises(poptorch.Error, match="updatableNamedBuffers names mean, but the model has no such buffer"):
        executor(torch.ones(1, 2))

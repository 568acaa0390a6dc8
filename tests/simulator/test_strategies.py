"""Execution strategies: accepted and refused stages and phases, and what a phased or automatic placement runs."""

from __future__ import annotations

import pytest
import torch
from simulated import TwoStages, data, options

from vit_ipu import simulator as poptorch
from vit_ipu.simulator import machine

pytestmark = pytest.mark.usefixtures("sixteen_ipus")


STRATEGIES = [
    (lambda: poptorch.Stage(1), "Block IDs are supposed to be strings but got"),
    (lambda: poptorch.PipelinedExecution("a", poptorch.Stage("b", "a")), "a associated with more than one stage"),
    (lambda: poptorch.PipelinedExecution("a").stage("b"), "Unknown block b"),
    (lambda: poptorch.SerialPhasedExecution(), "There is currently no AutoStage for PhasedExecution"),
    (lambda: poptorch.ParallelPhasedExecution(["a"], ["a"]), "a associated with more than one stage"),
    (lambda: poptorch.Phase("a", poptorch.Stage("b")), "must either be block IDs"),
    (lambda: poptorch.Phase("a", "b").ipus(0, 1), "Phase contains 1 stages but you provided 2 ipus"),
    (lambda: poptorch.SerialPhasedExecution("a").phase(-1), "Phases are identified by positive integers"),
    (lambda: poptorch.Options().setExecutionStrategy("pipelined"), None),
]


@pytest.mark.parametrize(
    ("make", "message"), STRATEGIES, ids=[message or "not a strategy" for _, message in STRATEGIES]
)
def test_invalid_strategies_are_refused(make, message):
    with pytest.raises(AssertionError, match=message):
        make()


def phased(kind, *ipus):
    strategy = kind([poptorch.Stage("first")], [poptorch.Stage("second")])
    for stage, ipu in zip(("first", "second"), ipus):
        strategy.stage(stage).ipu(ipu)
    return strategy


@pytest.mark.parametrize("kind", [poptorch.SerialPhasedExecution, poptorch.ParallelPhasedExecution])
def test_phased_execution_equals_sharded_execution(kind):
    results = []
    for strategy in (phased(kind, 0, 1), poptorch.ShardedExecution()):
        torch.manual_seed(0)
        model = TwoStages()
        executor = poptorch.trainingModel(model, options(1, 1, 1).setExecutionStrategy(strategy))
        results.append((executor(*data(2)), executor(*data(2, 1)), dict(model.state_dict())))
        assert machine.current.ipus_held == 2
        executor.destroy()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_phase_without_an_ipu_is_refused():
    class Unplaced(torch.nn.Module):
        def forward(self, x):
            with poptorch.Block("first"):
                return x + 1

    strategy = poptorch.SerialPhasedExecution("first")
    with pytest.raises(poptorch.Error, match="No active Block, all the ops must belong to a Block"):
        poptorch.inferenceModel(Unplaced(), poptorch.Options().setExecutionStrategy(strategy))(torch.ones(2))


def test_phases_have_poptorchs_stages_and_options():
    strategy = poptorch.ParallelPhasedExecution(
        [poptorch.Stage("0"), poptorch.Stage("1")], poptorch.Phase("2", "3"), "4"
    )
    strategy.phase(0).ipus(0, 2)
    assert [strategy.phase(0).stage(i)._ipu for i in range(2)] == [0, 2]
    assert strategy.stage("3").blocks == ("2", "3")
    strategy.useSeparateBackwardPhase().sendTensorsOffChipAfterFwd()
    assert strategy.backendOptions() == {
        "execution_mode": 2,
        "separate_backward_phase": True,
        "tensors_liveness": 1,
        "serial_phases_execution": False,
    }
    serial = poptorch.SerialPhasedExecution("a").setTensorsLiveness(poptorch.Liveness.OffChipAfterEachPhase)
    assert serial.backendOptions()["tensors_liveness"] == 3


def test_an_unlisted_block_is_refused():
    strategy = poptorch.PipelinedExecution("first")
    with pytest.raises(AssertionError, match=r"Unknown Block 'second' list of expected Blocks: \['first'\]"):
        poptorch.trainingModel(TwoStages(), options().setExecutionStrategy(strategy))(*data(8))


def test_automatic_stages_need_an_ipu_for_each_block():
    class Model(torch.nn.Module):
        def forward(self, x):
            with poptorch.Block("only"):
                return x + 1

    with pytest.raises(
        AssertionError, match="AutoStage.SameAsIpu was selected but no IPU was specified for block only"
    ):
        poptorch.inferenceModel(Model())(torch.ones(2))

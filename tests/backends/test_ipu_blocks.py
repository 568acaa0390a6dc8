"""Annotations of the model for IPUs: where stages begin, which outputs are kept, which transfers overlap."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from helpers import backend_for, random_batch, tiny_config
from torch import nn

from vit_ipu.errors import ConfigError
from vit_ipu.model import ViT

pytestmark = pytest.mark.usefixtures("ipu")


def blocks_of(model):
    return {
        name: hook
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if "BeginBlock" in repr(hook)
    }


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([1, 1, 1, 1], {"patch_embed": 0, "blocks.1": 1, "blocks.2": 2, "blocks.3": 3}),
        ([0, 4, 0], {"patch_embed": 0, "blocks.0": 1, "norm": 2}),
        ([4], {"patch_embed": 0}),
    ],
)
def test_stages_begin_where_the_config_says(ipu, layers, expected):
    config = tiny_config(pipeline={"layers_per_ipu": layers})
    model = ViT(config.model)
    ipu.blocks.begin_stages(model, config)
    assert {name: hook._ipu_id for name, hook in blocks_of(model).items()} == expected


def test_the_simulator_sees_the_stages_of_the_config(ipu):
    from vit_ipu.simulator.options.strategies import PipelinedExecution
    from vit_ipu.simulator.tracing.arguments import Arguments
    from vit_ipu.simulator.tracing.trace_model import trace_model
    from vit_ipu.simulator.weights import Weights

    config = tiny_config(pipeline={"layers_per_ipu": [0, 2, 2, 0]})
    step = ipu.blocks.TrainingStep(ViT(config.model), config)
    ipu.blocks.begin_stages(step.model, config)
    batch = random_batch(config)
    arguments = Arguments(["images", "labels"], [batch.images, batch.labels], {})
    trace = trace_model(step, Weights.of(step), arguments, PipelinedExecution().stage_manager, True)
    assert (trace.num_forward_stages, trace.num_stages, trace.ipus) == (4, 7, {0, 1, 2, 3})


def test_every_blocks_output_is_kept_after_keep_block_outputs(ipu, monkeypatch):
    kept = []
    monkeypatch.setattr(sys.modules["poptorch"], "recomputationCheckpoint", lambda x: kept.append(x) or x)
    model = ViT(tiny_config().model)
    model(torch.zeros(1, 3, 28, 28))
    assert kept == []
    ipu.blocks.keep_block_outputs(model)
    model(torch.zeros(1, 3, 28, 28))
    assert [tuple(x.shape) for x in kept] == [(1, 17, 32)] * 4


def test_the_middle_of_given_blocks_is_kept_once_for_residual_and_mlp(ipu, monkeypatch):
    kept, images = [], torch.randn(1, 3, 28, 28)
    monkeypatch.setattr(sys.modules["poptorch"], "recomputationCheckpoint", lambda x: kept.append(x) or 0 * x)
    model = ViT(tiny_config().model)
    middles = {}
    for index, block in enumerate(model.blocks):
        block.norm2.register_forward_pre_hook(lambda module, x, index=index: middles.update({index: x[0]}))
    model(images)
    before = middles[1]
    ipu.blocks.keep_middles(model, [1, 3])
    outputs = []
    model.blocks[1].register_forward_hook(lambda module, x, output: outputs.append(output))
    model(images)
    assert len(kept) == 2
    torch.testing.assert_close(kept[0], before)  # attention and its residual, before norm2
    assert middles[1].abs().max() == 0  # what follows reads only the kept tensor, which the patch has zeroed
    assert outputs[0].std(dim=1).max() < 1e-6  # of the residual nothing else is left


def test_the_backend_keeps_the_middles_of_the_config(monkeypatch):
    kept = []
    poptorch = sys.modules["poptorch"]
    original = poptorch.recomputationCheckpoint
    monkeypatch.setattr(poptorch, "recomputationCheckpoint", lambda x: kept.append(x.shape) or original(x))
    config = tiny_config(pipeline={"recompute": "every_block", "recompute_mid_layers": [0, 2]})
    backend = backend_for(config, "ipu-sim")
    backend.train_step(random_batch(config), 0.05)
    backend.close()
    calls_per_forward = 4 + 2
    assert kept
    assert len(kept) % calls_per_forward == 0
    for change, message in (
        ({"recompute_mid_layers": [4]}, "recompute_mid_layers: there is no block 4: the blocks are 0 to 3"),
        ({"recompute_mid_layers": [1, 1]}, r"recompute_mid_layers \[1, 1\] names a block twice: name each block once"),
        ({"recompute_mid_layers": [1], "recompute": "none"}, "has no effect with recompute: none: use every_block"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(pipeline=change)


@pytest.mark.parametrize("mode", ["accumulation_loop", "device_iteration_loop"])
def test_overlapped_io_marks_every_input_and_the_loss(monkeypatch, mode):
    poptorch, marked = sys.modules["poptorch"], []
    for name in ("set_overlap_for_input", "set_overlap_for_output"):
        original = getattr(poptorch, name)
        monkeypatch.setattr(
            poptorch,
            name,
            lambda tensors, mode, name=name, original=original: (
                marked.append((name, mode.value)) or original(tensors, mode)
            ),
        )
    config = tiny_config(
        pipeline={"execution": "sharded", "io_tiles": 32, "overlap_io": mode}, data={"mixup_alpha": 0.2}
    )
    backend = backend_for(config, "ipu-sim")
    assert math.isfinite(backend.train_step(random_batch(config), 0.05).loss)
    backend.close()
    assert {(name, value) for name, value in marked} == {
        ("set_overlap_for_input", f"overlap_{mode}"),
        ("set_overlap_for_output", f"overlap_{mode}"),
    }


def test_the_model_itself_has_no_ipu_blocks():
    model = ViT(tiny_config().model)
    assert blocks_of(model) == {}
    assert all(isinstance(module, nn.Module) for module in model.modules())

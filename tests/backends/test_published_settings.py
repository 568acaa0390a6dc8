"""The configs copied from graphcore/examples set on IPUs what their originals set, as docs/recipes.md shows.

The values are those of vision/vit/pytorch: configs.yml, args.py (defaults), ipu_options.py and optimization.py at SDK
3.4; the POD4's are from README_Benchmarks of release 2.5, the POD64's from benchmarks.yml.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vit_ipu import simulator
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.ipu_rules import ipu_violations
from vit_ipu.model import ViT

PREFIX = "graphcore_vit_base_patch16_"
HALF, FLOAT = torch.float16, torch.float32
COMMON = {
    "replication_factor": 4,
    "device_iterations": 1,
    "reduction": "Mean",
    "sharded_state": True,
    "state_on_chip": True,
    "loss_scaling": 1.0,
    "accum_type": HALF,
    "moment_types": (HALF,),
}
ORIGINALS = {
    "cifar10_pod16": {"gradient_accumulation": 128},
    "imagenet_pod16": {"gradient_accumulation": 30, "device_iterations": 8, "loss_scaling": 0.25},
    "imagenet_pod4": {
        "gradient_accumulation": 120,
        "device_iterations": 8,
        "replication_factor": 1,
        "loss_scaling": 0.25,
        "sharded_state": False,
        "state_on_chip": False,
    },
    "pretrain_pod16": {
        "gradient_accumulation": 128,
        "reduction": "Sum",
        "loss_scaling": 128.0,
        "moment_types": (FLOAT, FLOAT),
    },
    "pretrain_lamb_pod16": {
        "gradient_accumulation": 2048,
        "reduction": "Sum",
        "loss_scaling": 1024.0,
        "accum_type": FLOAT,
        "moment_types": (FLOAT, FLOAT),
    },
    "pretrain_lamb_pod64": {
        "gradient_accumulation": 512,
        "replication_factor": 16,
        "reduction": "Sum",
        "sharded_state": False,
        "loss_scaling": 1024.0,
        "accum_type": FLOAT,
        "moment_types": (FLOAT, FLOAT),
    },
}
POPART = {
    "disableGradAccumulationTensorStreams": True,
    "accumulateOuterFragmentSettings.schedule": 3,
    "accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0"],
    "defaultPrefetchBufferingDepth": 2,
    "engineOptions": {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"},
    "subgraphCopyingStrategy": 1,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
    "partialsTypeMatMuls": "half",
    "enableStochasticRounding": True,
}


@pytest.fixture(autouse=True)
def _simulator():
    simulator.install()


def test_every_config_copied_from_graphcore_has_its_original():
    copied = [name for name in shipped_configs() if name.startswith(PREFIX)]
    assert sorted(copied) == sorted(PREFIX + name for name in ORIGINALS)


@pytest.mark.parametrize("name", ORIGINALS)
def test_options_and_optimizer_are_those_of_the_original(name):
    from vit_ipu.backends.ipu.optimizer import build_optimizer
    from vit_ipu.backends.ipu.options import training_options

    expected = dict(COMMON, **ORIGINALS[name])
    config = load_config(shipped_configs()[PREFIX + name])
    assert ipu_violations(config) == []
    options = training_options(config)
    assert options.device_iterations == expected["device_iterations"]
    assert options.replication_factor == expected["replication_factor"]
    assert options.Training.gradient_accumulation == expected["gradient_accumulation"]
    assert options.Training.accumulation_and_replication_reduction_type.name == expected["reduction"]
    assert options.output_mode == simulator.OutputMode.All
    assert options.available_memory_proportion == dict.fromkeys(range(4), 0.3)
    state = options.TensorLocations.location_optimizer
    assert state["useReplicatedTensorSharding"] == int(expected["sharded_state"])
    assert state["onChip"] == int(expected["state_on_chip"])
    popart = options._Popart.options
    assert {key: popart[key] for key in POPART} == POPART
    assert config.layers_per_ipu == (3, 3, 3, 3)
    assert (config.pipeline.recompute, config.pipeline.recompute_mid_layers) == ("every_block", (1, 4, 7, 10))
    small = config.model.model_copy(update={"width": 12, "depth": 1, "num_heads": 2})
    optimizer = build_optimizer(ViT(small), config)
    assert optimizer.loss_scaling == expected["loss_scaling"]
    assert optimizer.accum_type == expected["accum_type"]
    names = ("velocity_accum_type", "first_order_momentum_accum_type", "second_order_momentum_accum_type")
    assert tuple(getattr(optimizer, key) for key in names if hasattr(optimizer, key)) == expected["moment_types"]


def test_the_page_on_recipes_shows_the_settings():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for name in [*POPART, "TiedGather"]:
        assert f"`{name}`" in page or f"`{name} " in page, name

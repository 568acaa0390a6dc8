"""Shipped configs: each is valid, has a reference, and states only what differs from the defaults."""

from __future__ import annotations

import pytest

from vit_ipu.config import Config
from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.ipu_rules import ipu_violations, require_runnable
from vit_ipu.pipeline import num_ipus
from vit_ipu.unused_options import unused_options

SHIPPED = shipped_configs()

# Batch arithmetic of the published configs: micro-batch, accumulation, replicas, device iterations, updates
# (shared sources: mmclassification's page and config; graphcore/examples configs.yml and release 2.5's README).
PUBLISHED = {
    "mmcls_vit_base_patch16_finetune_224_ipu": (17, 32, 4, 1, 5000),
    "graphcore_vit_base_patch16_cifar10_pod16": (17, 128, 4, 1, 2000),
    "graphcore_vit_base_patch16_imagenet_pod16": (17, 30, 4, 8, 5000),
    "graphcore_vit_base_patch16_imagenet_pod4": (17, 120, 1, 8, 5000),
    "graphcore_vit_base_patch16_pretrain_pod16": (8, 128, 4, 1, 93600),
    "graphcore_vit_base_patch16_pretrain_lamb_pod16": (8, 2048, 4, 1, 11400),
    "graphcore_vit_base_patch16_pretrain_lamb_pod64": (8, 512, 16, 1, 11400),
}
FINE_TUNED = {"vit_small_patch14_finetune_fashion_mnist_ipu", "vit_small_patch14_finetune_drawings_ipu"}
"""Measured over simulated IPUs: docs/results.md."""


def test_every_row_of_the_reference_table_has_a_config():
    rows = {"quickstart", "quickstart_pretrain", *PUBLISHED, *FINE_TUNED}
    rows |= {f"mmcls_vit_{v}_pretrain_224" for v in ("base_patch16", "base_patch32", "large_patch16")}
    rows |= {f"mmcls_vit_{v}_finetune_384" for v in ("base_patch16", "base_patch32", "large_patch16")}
    assert set(SHIPPED) == rows | {"own_folder_gpu", "own_folder_pod4", "own_folder_pod16"}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"own_folder_gpu"}))
def test_shipped_config_is_valid_and_runs_on_ipus(name):
    assert ipu_violations(load_config(SHIPPED[name])) == []


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_config_for_a_gpu_runs_on_one_device_without_a_note(kind):
    config = load_config(SHIPPED["own_folder_gpu"])
    assert require_runnable(config, kind) == []
    assert unused_options(config) == []


@pytest.mark.parametrize(("name", "ipus"), [("own_folder_pod4", 4), ("own_folder_pod16", 16)])
def test_the_configs_for_pods_take_all_their_ipus(name, ipus):
    assert num_ipus(load_config(SHIPPED[name])) == ipus


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_config_opens_with_its_command_and_reference(name):
    header = SHIPPED[name].read_text().split("\nmodel:")[0]
    device = "cuda" if name == "own_folder_gpu" else "ipu"
    assert header.startswith("# yaml-language-server: $schema=config.schema.json\n")
    assert f"vit-ipu train pipeline_configs/{name}.yaml --device {device}" in header
    if not name.startswith("quickstart"):  # which are measured
        assert "Derived, unpublished" in header if name.startswith("own_folder") else "Reference" in header
        where = "on IPUs" if name in FINE_TUNED else "here"
        assert f"Not yet measured {where}" in header.replace("\n# ", " ")


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_config_states_only_what_differs_from_the_defaults(name):
    config = load_config(SHIPPED[name])
    declared = {"width", "depth", "num_heads", "patch_size", "global_batch_size", "micro_batch_size"}
    defaults = {section: type(getattr(config, section)).model_fields for section in Config.model_fields}
    repeated = [
        f"{section}.{key}"
        for section, fields in defaults.items()
        for key in getattr(config, section).model_fields_set - declared
        if not fields[key].is_required() and fields[key].default == getattr(getattr(config, section), key)
    ]
    assert repeated == []


@pytest.mark.parametrize(("name", "expected"), sorted(PUBLISHED.items()))
def test_published_batches_are_reproduced(name, expected):
    config = load_config(SHIPPED[name])
    pipeline = config.pipeline
    assert expected == (
        pipeline.micro_batch_size,
        pipeline.gradient_accumulation,
        pipeline.replication_factor,
        pipeline.device_iterations,
        config.run.updates,
    )

"""Configs: files, overrides and defaults become the values that the run has."""

from __future__ import annotations

import pytest
from helpers import tiny_config, tiny_values
from pydantic import ValidationError

from vit_ipu.config import Config, ModelConfig, PrecisionConfig
from vit_ipu.config_file import _load_yaml, dump_config, load_config, parse_config, shipped_configs
from vit_ipu.errors import ConfigError
from vit_ipu.variants import VARIANTS

SHIPPED = shipped_configs()


def test_a_config_is_frozen():
    config = tiny_config()
    with pytest.raises(ValidationError):
        config.model.width = 3
    with pytest.raises(ValidationError):
        config.run = None


def test_a_config_that_is_written_and_read_is_unchanged(tmp_path):
    for path in SHIPPED.values():
        config = load_config(path)
        copy = tmp_path / path.name
        copy.write_text(dump_config(config))
        assert load_config(copy) == config


@pytest.mark.parametrize("chosen", ["balanced", (1.0, 2.0) * 5])
def test_class_weights_that_are_written_and_read_are_unchanged(tmp_path, chosen):
    config = parse_config(tiny_values(), [f"optim.class_weights={list(chosen) if chosen != 'balanced' else chosen}"])
    assert config.optim.class_weights == chosen
    (tmp_path / "copy.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "copy.yaml") == config
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_variant_fills_in_the_shape_and_yields_to_explicit_fields():
    model = ModelConfig(variant="vit_base_patch16", depth=2)
    assert (model.width, model.depth, model.num_heads, model.patch_size) == (768, 2, 12, 16)


def test_variants_are_the_papers_sizes_at_three_patch_sizes():
    sizes = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
    sizes.update(large=(1024, 24, 16), huge=(1280, 32, 16))
    for size, shape in sizes.items():
        for patch in (14, 16, 32):
            variant = VARIANTS[f"vit_{size}_patch{patch}"]
            assert (variant["width"], variant["depth"], variant["num_heads"], variant["patch_size"]) == (*shape, patch)


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", "+1e-6", "0.000001"])
def test_yaml_reads_exponents_as_numbers(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(tiny_config()).replace("layer_norm_eps: 1.0e-06", "layer_norm_eps: " + text))
    assert load_config(path).model.layer_norm_eps == 1e-6


def test_override_parses_its_value_as_yaml():
    overrides = ["optim.learning_rate=1e-3", "pipeline.layers_per_ipu=[2, 2]", "run.evaluate_every=null"]
    config = parse_config(tiny_values(), overrides)
    assert config.optim.learning_rate == 1e-3
    assert config.pipeline.layers_per_ipu == (2, 2)
    assert config.run.evaluate_every is None


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(SHIPPED["quickstart"])
    assert load_config("pipeline_configs/quickstart.yaml") == load_config(SHIPPED["quickstart"])


def test_dates_are_strings_and_merge_keys_are_merged(tmp_path):
    path = tmp_path / "config.yaml"
    text = dump_config(tiny_config())
    path.write_text(text.replace("path: null", "path: 2020-13-45") + "# end\n")
    assert load_config(path).data.path == "2020-13-45"
    merged = "shared: &shared {updates: 4}\nrun:\n  <<: *shared\n  seed: 3\n"
    assert _load_yaml(merged)["run"] == {"updates": 4, "seed": 3}


@pytest.mark.parametrize("word", ["1e5", "null", "yes", "2020-01-01", "1.5", "-"])
def test_strings_that_look_like_other_types_stay_strings(tmp_path, word):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(tiny_config(data={"path": word})))
    assert load_config(path).data.path == word


def test_an_empty_section_has_only_defaults():
    values = tiny_values()
    values["precision"] = None
    assert parse_config(values).precision == PrecisionConfig()


def test_a_warmup_longer_than_the_epochs_is_refused_once_the_images_are_counted():
    config = tiny_config(run={"updates": None, "epochs": 1.0}, optim={"warmup_updates": 1000})
    expected = "1000 is more than the 10 updates of the run: set optim.warmup_updates to 10 or less, such as by --set "
    with pytest.raises(ConfigError, match=f"{expected}optim.warmup_updates=2$"):
        config.total_updates(320)


def test_epochs_become_whole_host_steps():
    config = tiny_config(run={"updates": None, "epochs": 2.5}, pipeline={"device_iterations": 2})
    assert config.total_updates(1000) == 2500 // 64 * 2
    assert config.total_updates(10) == 2  # at least one host step

"""`config` lists the shipped configs, shows one with all its keys, and prints the schema."""

from __future__ import annotations

import json

import yaml

from vit_ipu.config_file import load_config, parse_config, shipped_configs
from vit_ipu.config_reference import json_schema


def test_the_list_names_every_shipped_config(run):
    out = run("config")
    for name in shipped_configs():
        assert f"\n{name}\n  " in f"\n{out}"
    assert max(map(len, out.splitlines())) <= 80
    listed = json.loads(run("config", "--json"))["configs"]
    assert list(listed) == list(shipped_configs())
    assert all(len(purpose) > 15 for purpose in listed.values())


def test_a_config_is_shown_with_all_its_keys(run):
    shown = yaml.safe_load(run("config", "quickstart", "--set", "run.seed=7"))
    assert parse_config(json.loads(run("config", "quickstart", "--json"))) == load_config("quickstart")
    assert shown["run"]["seed"] == 7
    assert set(shown["pipeline"]) == set(type(load_config("quickstart").pipeline).model_fields)


def test_the_schema_is_printed(run):
    assert json.loads(run("config", "--schema")) == json_schema()

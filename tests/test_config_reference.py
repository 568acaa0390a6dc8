"""docs/config.md and the JSON schema equal the code, and say truly on which devices a key has an effect."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from vit_ipu.config_file import load_config, shipped_configs
from vit_ipu.config_mistakes import all_keys
from vit_ipu.config_reference import PAGE, SCHEMA, config_keys, config_page, json_schema

ROOT = Path(__file__).parent.parent
AGAIN = "run: python -m vit_ipu.config_reference"
KEYS = {f"{key.section}.{key.name}": key for key in config_keys()}


def test_the_page_and_the_schema_are_those_of_the_code():
    assert (ROOT / PAGE).read_text() == config_page(), AGAIN
    assert json.loads((ROOT / SCHEMA).read_text()) == json_schema(), AGAIN


def test_every_key_is_on_the_page_with_a_meaning():
    assert list(KEYS) == all_keys()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \| (all|IPUs|CUDA, CPU) \|$", config_page(), re.M)
    assert [row[0] for row in rows] == [key.name for key in KEYS.values()]
    for key in KEYS.values():
        assert re.search(r"\w{3}.*\.$", key.meaning), key


def test_every_key_of_the_schema_has_a_description_and_its_default():
    definitions = json_schema()["$defs"]
    for definition in definitions.values():
        for name, value in definition["properties"].items():
            assert value["description"].endswith("."), name
            assert "default" in value or name in definition["required"] or definition["title"] == "ModelConfig", name


@pytest.mark.parametrize(
    ("key", "type", "default"),
    [
        ("run.updates", "whole number above 0 or null", "null"),
        ("model.dropout", "number from 0 below 1", "0.0"),
        ("data.crop", "`random_resized`, `padded` or `center`", "random_resized"),
        ("data.rand_augment", "list of 2: whole number from 1 to 14; whole number from 0 to 30 or null", "null"),
        ("data.mean", "list of 3: number", "[0.5, 0.5, 0.5]"),
        ("optim.learning_rate", "number above 0 to 1e+06", ""),
        ("pipeline.popart_options", "mapping", "{}"),
    ],
)
def test_types_are_words(key, type, default):
    assert (KEYS[key].type, KEYS[key].default) == (type, default)


def sources_of(*folders: str) -> str:
    paths = [path for folder in folders for path in sorted((ROOT / "vit_ipu" / folder).rglob("*.py"))]
    return "\n".join(path.read_text() for path in paths)


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.devices == "IPUs"])
def test_a_key_for_ipus_is_not_read_where_cpus_and_gpus_compute(key):
    name = key.partition(".")[2]
    read_by_all = sources_of("backends/native", "data") + "".join(
        (ROOT / "vit_ipu" / f"{module}.py").read_text() for module in ("step", "model", "optim", "mixing", "losses")
    )
    assert not re.search(rf"(pipeline|precision|optim|run|config)\.{name}\b", read_by_all)
    read_by_ipus = sources_of("backends/ipu") + (ROOT / "vit_ipu" / "config.py").read_text()
    read_by_ipus += (ROOT / "vit_ipu" / "pipeline.py").read_text()
    assert re.search(rf"\b{name}\b", read_by_ipus)


@pytest.mark.parametrize("key", [name for name, key in KEYS.items() if key.devices == "CUDA, CPU"])
def test_a_key_for_cpus_and_gpus_is_not_read_by_the_backend_of_ipus(key):
    name = key.partition(".")[2]
    assert name not in sources_of("backends/ipu")
    assert name in sources_of("backends/native")


def test_the_schema_accepts_the_shipped_configs():
    """Checks what an editor would: known keys, and required ones."""
    definitions = json_schema()["$defs"]
    for path in shipped_configs().values():
        for section, values in yaml.safe_load(path.read_text()).items():
            definition = definitions[type(getattr(load_config(path), section)).__name__]
            assert set(values) <= set(definition["properties"])
            assert set(definition.get("required", ())) <= set(values)

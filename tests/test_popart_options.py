"""The options of PopART that a config may set, against the table of those that PopTorch accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_config

import vit_ipu
from vit_ipu import popart_options
from vit_ipu.errors import ConfigError
from vit_ipu.popart_options import OWN_KEYS, PATTERNS, SET_BY_POPTORCH, settable_options

TABLE = json.loads((Path(vit_ipu.__file__).parent / "simulator" / "tables" / "session_options.json").read_text())
KINDS = {bool: "bool", int: "uint64", float: "double", str: "string", list: "container", dict: "container"}


def test_every_option_of_poptorch_is_settable_has_its_own_key_or_is_set_by_poptorch():
    ours = [*settable_options(), *OWN_KEYS, *SET_BY_POPTORCH.split()]
    ours.remove(PATTERNS)
    theirs = [name for kind in TABLE["options"].values() for name in kind]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_types_are_those_of_poptorch(kind):
    names = popart_options._NAMES[kind].split()
    assert names
    assert all(name in TABLE["options"][KINDS[kind]] for name in names)


@pytest.mark.parametrize(("name", "key"), OWN_KEYS.items())
def test_an_option_with_a_key_of_its_own_names_the_key(name, key):
    with pytest.raises(ConfigError, match=f"pipeline: popart_options: {name} cannot be set here: use {key}$"):
        tiny_config(pipeline={"popart_options": {name: 1}})
    section, _, option = key.partition(".")
    assert hasattr(getattr(tiny_config(), section), option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlineTreshold": 10.0}, "outlineTreshold cannot be set here; did you mean 'outlineThreshold'"),
        ({"virtualGraphMode": 1}, "virtualGraphMode cannot be set here: PopTorch sets it"),
        ({"outlineThreshold": 10}, "outlineThreshold must be a finite number with a decimal point, but it is 10"),
        ({"enableOutlining": 1}, "enableOutlining must be true or false, but it is 1"),
        ({"mergeVarUpdate": True}, "mergeVarUpdate must be a whole number of 0 or more, but it is True"),
        ({"mergeVarUpdate": -1}, "mergeVarUpdate must be a whole number of 0 or more, but it is -1"),
        ({"kahnTieBreaker": 3}, "kahnTieBreaker must be a text, but it is 3"),
        ({"customCodelets": "a.cpp"}, "customCodelets must be a list of texts, but it is 'a.cpp'"),
        ({"matmulOptions": {"x": 1}}, "matmulOptions must be a mapping of texts to texts"),
        ({"subgraphCopyingStrategy": 2}, "subgraphCopyingStrategy must be 0 to 1, but it is 2"),
        (
            {"accumulateOuterFragmentSettings.excludedVirtualGraphs": ["a"]},
            "accumulateOuterFragmentSettings.excludedVirtualGraphs must be a list of whole numbers as texts",
        ),
        ({"patterns": {"TidGather": True}}, "patterns: TidGather cannot be switched; did you mean 'TiedGather'"),
        ({"patterns": ["TiedGather"]}, "patterns must map names of patterns to true or false"),
    ],
)
def test_a_wrong_name_or_value_is_refused(options, message):
    with pytest.raises(ConfigError, match="pipeline: popart_options: " + message):
        tiny_config(pipeline={"popart_options": options})


def test_an_engine_option_of_a_wrong_type_is_refused():
    with pytest.raises(ConfigError, match=r"pipeline: engine_options: a must be a text, a number, true or"):
        tiny_config(pipeline={"engine_options": {"a": [1]}})


def test_values_of_every_type_are_accepted():
    options = {
        "enableOutlining": False,
        "mergeVarUpdate": 2,
        "outlineThreshold": 10.0,
        "kahnTieBreaker": "Fifo",
        "customCodelets": ["a.cpp"],
        "matmulOptions": {"use128BitConvUnitLoad": "true"},
        "patterns": {"UpdateInplacePrioritiesForIpu": True},
    }
    assert tiny_config(pipeline={"popart_options": options}).pipeline.popart_options == options
